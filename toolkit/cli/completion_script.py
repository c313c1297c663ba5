"""What <TAB> offers: verbs, their options, recipe files, keys of a recipe and their values; a static script for each shell.

eval "$(pollard completion bash)"

The scripts hold all words: nothing of Pollard is started to complete one.
"""

import argparse
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from toolkit.recipe.choices import TaskName
from toolkit.recipe.data import Section
from toolkit.recipe.schema import SHORTHANDS, ZERO_PRESETS, Recipe

EXTRA_OPTIONS: dict[str, list[str]] = {
    "finetuning.zero": [str(preset) for preset in ZERO_PRESETS],
    "task": list(get_args(TaskName)),
}
TAKES_RECIPES = "recipe"  # the name of the argument


def keys_and_values() -> dict[str, list[str]]:
    """Every key path that an override can set, with the values that are known beforehand. One that ends with a dot has keys
    that are not ours."""
    shorthands: dict[str, list[str]] = {key: [] for key in SHORTHANDS}
    return shorthands | dict(_keys(Recipe, "")) | EXTRA_OPTIONS


def _keys(section: type[Section], prefix: str) -> Iterator[tuple[str, list[str]]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")
        elif get_origin(kind) is dict:
            yield f"{prefix}{name}.", []
        else:
            yield f"{prefix}{name}", list(dict.fromkeys(_values(kind)))


def _values(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) is list:  # of one of a list's items, there is nothing to say
        return
    elif kind is bool:
        yield from ("true", "false")
    else:
        for part in get_args(kind):
            yield from _values(part)


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    return [
        option
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    ]


def choices_of(parser: argparse.ArgumentParser) -> list[str]:
    """Of its argument, where it takes one of a few words."""
    return [str(word) for action in parser._actions if not action.option_strings for word in action.choices or ()]


def takes_a_recipe(parser: argparse.ArgumentParser) -> bool:
    return any(action.dest == TAKES_RECIPES for action in parser._actions)


def script(shell: str, verbs: dict[str, argparse.ArgumentParser]) -> str:
    options = {name: " ".join(options_of(parser)) for name, parser in verbs.items()}
    with_recipe = [name for name, parser in verbs.items() if takes_a_recipe(parser)]
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    words = {name: " ".join(choices_of(parser)) for name, parser in verbs.items()}
    return write(options, with_recipe, words)


def _assigned(key: str) -> str:
    return key if key.endswith(".") else f"{key}="


KEYS = " ".join(_assigned(key) for key in keys_and_values())
VALUES = {key: " ".join(known) for key, known in keys_and_values().items()}


def _cases(of: dict[str, str], variable: str, indent: int) -> str:
    """Branches of a shell's `case`, without those that would say nothing."""
    return "".join(f'{" " * indent}{name}) {variable}="{words}" ;;\n' for name, words in of.items() if words)


def _bash(options: dict[str, str], with_recipe: list[str], choices: dict[str, str]) -> str:
    # Bash takes `=` for the end of a word: behind it, the word to complete is only what follows
    return f"""\
_pollard() {{
    local word verb words="" key
    word=${{COMP_LINE:0:COMP_POINT}}
    word=${{word##* }}
    verb=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(options)} --help" -- "$word"))
        return
    fi
    case $word in
    -*)
        case $verb in
{_cases(options, "words", 8)}        esac
        COMPREPLY=($(compgen -W "$words" -- "$word"))
        return
        ;;
    esac
    case $verb in
    {"|".join(with_recipe)})
        case $word in
        *=*)
            key=${{word%%=*}}
            case $key in
{_cases(VALUES, "words", 12)}            esac
            word=${{word#*=}}
            if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
            ;;
        *)
            COMPREPLY=($(compgen -W "{KEYS}" -- "$word"))
            COMPREPLY+=($(compgen -f -X '!*.yaml' -- "$word") $(compgen -S / -d -- "$word"))
            [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *.yaml ]] || compopt -o nospace 2>/dev/null
            ;;
        esac
        ;;
    *)
        case $verb in
{_cases(choices, "words", 8)}        esac
        if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi
        COMPREPLY=($(compgen -f -- "$word"))
        compopt -o filenames 2>/dev/null
        ;;
    esac
}}
complete -F _pollard pollard
"""


def _zsh(options: dict[str, str], with_recipe: list[str], choices: dict[str, str]) -> str:
    return f"""\
#compdef pollard
_pollard() {{
    local word=$words[CURRENT] verb=$words[2] found=""
    if (( CURRENT == 2 )); then
        compadd -- {" ".join(options)} --help
        return
    fi
    if [[ $word == -* ]]; then
        case $verb in
{_cases(options, "found", 8)}        esac
        compadd -- ${{=found}}
        return
    fi
    case $verb in
    {"|".join(with_recipe)})
        if [[ $word == *=* ]]; then
            case ${{word%%=*}} in
{_cases(VALUES, "found", 12)}            esac
            compset -P '*='
            if [[ -n $found ]]; then compadd -- ${{=found}}; else _files; fi
        else
            compadd -S '' -- {KEYS}
            _files -g '*.yaml'
        fi
        ;;
    *)
        case $verb in
{_cases(choices, "found", 8)}        esac
        if [[ -n $found ]]; then compadd -- ${{=found}}; else _files; fi
        ;;
    esac
}}
compdef _pollard pollard
"""


def _fish(options: dict[str, str], with_recipe: list[str], choices: dict[str, str]) -> str:
    lines = ["complete -c pollard -f", f"complete -c pollard -n __fish_use_subcommand -a '{' '.join(options)}'"]
    for verb, words in options.items():
        seen = f"complete -c pollard -n '__fish_seen_subcommand_from {verb}'"
        lines += [f"{seen} -l {word.removeprefix('--')}" for word in words.split()]
        lines += [f"{seen} -a '{choices[verb]}'"] if choices[verb] else []
    known = [f"{_assigned(key)}{value}" for key, found in VALUES.items() for value in (found.split() or [""])]
    where = f"-n '__fish_seen_subcommand_from {' '.join(with_recipe)}'"
    lines += [
        f"complete -c pollard {where} -a '{' '.join(known)}'",
        f"complete -c pollard {where} -a '(__fish_complete_suffix .yaml)'",
        f"complete -c pollard -n 'not __fish_seen_subcommand_from {' '.join([*with_recipe, *filter(choices.get, choices)])}' -F",
    ]
    return "\n".join(lines) + "\n"
