"""Completion of the command line: `eval "$(pollard completion bash)"`.

shtab writes the shell's script from the parsers: verbs, options and their values, recipe files, paths. What it does not know is
`key=value`, the overrides of a recipe: a function in each shell's language completes the keys, and behind `=` the values that a
key can have. Another one completes runs: those in runs/, by path or by name, and behind `runs/NAME/` their models. The scripts
contain all words, so that completing starts no Python.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import shtab

from toolkit.recipe.data import Section, TaskName
from toolkit.recipe.finetuning import ZERO_PRESETS
from toolkit.recipe.schema import SHORTHANDS, Recipe

EXTRA_VALUES: dict[str, list[str]] = {
    "finetuning.zero": [str(preset) for preset in ZERO_PRESETS],
    "task": list(get_args(TaskName)),
}
RUN_ARGUMENTS = {"run", "runs", "models", "model", "first", "second"}
"""The names of arguments that take a run directory, or a model of one."""
RUNS = {shell: "_pollard_runs" for shell in ("bash", "zsh")} | {"fish": "(_pollard_runs)"}
OVERRIDES = {shell: "_pollard_overrides" for shell in ("bash", "zsh")} | {"fish": "(_pollard_overrides)"}


RUN_HOOKS = {
    "bash": """\
_pollard_runs() {
  local run role found=()
  for run in runs/*/manifest.json; do
    [[ -e $run ]] || continue
    run=${run%/manifest.json}
    found+=("$run" "${run#runs/}")
    [[ $1 == "$run"/* ]] || continue
    for role in original pruned refitted recovered control; do
      if [[ $role == original || -d $run/$role ]]; then found+=("$run/$role"); fi
    done
  done
  { compgen -W "${found[*]}" -- "$1"; compgen -f -- "$1"; } | sort -u
}
""",
    "zsh": """\
_pollard_runs() {
  local run
  local -a found
  for run in runs/*/manifest.json(N:h); do
    found+=($run ${run#runs/})
    if [[ $PREFIX == $run/* ]]; then found+=($run/original $run/{pruned,refitted,recovered,control}(N)); fi
  done
  compadd -a found
  _files
}
""",
    "fish": """\
function _pollard_runs
  for file in runs/*/manifest.json
    set -l run (string replace /manifest.json '' $file)
    printf '%s\\n' $run (string replace runs/ '' $run) $run/original
    for role in pruned refitted recovered control
      test -d $run/$role; and echo $run/$role
    end
  end
  __fish_complete_path (commandline -ct)
end
""",
}
"""`_pollard_runs` in each shell's language: a run of runs/ (what has a manifest) by path or name, its models, or a file."""


def completion_script(shell: str, parser: argparse.ArgumentParser, verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script with which `shell` (bash, zsh or fish) completes the commands of `parser`. `verbs` are the verbs' parsers."""
    for verb in verbs.values():
        for action in verb._actions:
            _set_completer(action)
    write_hook = {"bash": _bash_hook, "zsh": _zsh_hook, "fish": _fish_hook}[shell]
    script = shtab.complete(parser, shell, preamble=write_hook(keys_and_values()) + RUN_HOOKS[shell])
    if shell == "zsh":  # shtab's spec "(*):…" is one argument; "*:…" is any number of them
        script = re.sub(r'"\(\*\)::?', '"*:', script)
    return f"{script}\n{BASH_ENDING}" if shell == "bash" else script


def _set_completer(action: argparse.Action) -> None:
    """Tells shtab how an argument is completed: by the attribute `complete`, unless it has choices."""
    if action.dest == "recipe":
        # zsh takes shtab's pattern, (*.yaml), for something else: a list of qualifiers
        action.complete = shtab.glob("*.yaml") | {"zsh": "_files -g '*.yaml'"}  # type: ignore[attr-defined]
    elif action.dest == "overrides":
        action.complete = OVERRIDES  # type: ignore[attr-defined]
    elif action.dest in RUN_ARGUMENTS and not action.option_strings:
        action.complete = RUNS  # type: ignore[attr-defined]
    elif not action.choices and (not action.option_strings or action.metavar == "FILE"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def keys_and_values() -> dict[str, list[str]]:
    """Every key that an override can set, with the values it can have as far as they are known. A key with a dot at its end has
    keys of another library."""
    shorthands: dict[str, list[str]] = {key: [] for key in SHORTHANDS}
    return shorthands | dict(_keys(Recipe, "")) | EXTRA_VALUES


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
    """The values of a type: those of a Literal or bool, also in a union. A list's value is not one of its items' values."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    elif get_origin(kind) is not list:
        for part in get_args(kind):
            yield from _values(part)


def _words(keys: Mapping[str, list[str]]) -> str:
    """`pruning.keep= … finetuning.trainer.`"""
    return " ".join(key if key.endswith(".") else f"{key}=" for key in keys)


def _cases(keys: Mapping[str, list[str]]) -> str:
    """Branches of a `case` over the key, which set `values`."""
    return "".join(f'    {key}) values="{" ".join(values)}" ;;\n' for key, values in keys.items() if values)


def _bash_hook(keys: Mapping[str, list[str]]) -> str:
    # Bash ends a word at `=`, so that $1 would be the value alone: the word is read off the line
    return f"""\
_pollard_overrides() {{
  local word=${{COMP_LINE:0:COMP_POINT}} values=""
  word=${{word##* }}
  if [[ $word != *=* ]]; then
    compgen -W "{_words(keys)}" -- "$word"
    return
  fi
  case ${{word%%=*}} in
{_cases(keys)}  esac
  if [[ -n $values ]]; then compgen -W "$values" -- "${{word#*=}}"; else compgen -f -- "${{word#*=}}"; fi
}}
"""


BASH_ENDING = """\
# No space after `key=`, `section.` and `folder/`
_pollard() {
  _shtab_pollard
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then compopt -o nospace 2>/dev/null; fi
  return 0
}
complete -o bashdefault -F _pollard pollard
"""


def _zsh_hook(keys: Mapping[str, list[str]]) -> str:
    return f"""\
_pollard_overrides() {{
  local values=""
  if [[ $PREFIX != *=* ]]; then
    compadd -S '' -- {_words(keys)}
    return
  fi
  case ${{PREFIX%%=*}} in
{_cases(keys)}  esac
  compset -P '*='
  if [[ -n $values ]]; then compadd -- ${{=values}}; else _files; fi
}}
"""


def _fish_hook(keys: Mapping[str, list[str]]) -> str:
    words = [f"{word}{value}" for key, values in keys.items() for word in _words({key: []}).split() for value in values or [""]]
    return f"""\
function _pollard_overrides
  printf '%s\\n' {" ".join(words)}
end
"""
