"""Verbs that list what there is: `pollard criteria`, `tasks`, `recipes` and `completion`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console, say
from toolkit.runtime.embedded import EMBEDDED
from toolkit.runtime.errors import PollardError, did_you_mean

RECIPES_FOLDER = EMBEDDED / "recipes"
SHELLS = {  # shell: how to switch completion on
    "bash": 'eval "$(pollard completion bash)", in ~/.bashrc',
    "zsh": 'eval "$(pollard completion zsh)" behind compinit, in ~/.zshrc',
    "fish": "pollard completion fish > ~/.config/fish/completions/pollard.fish",
}


def run_criteria(arguments: argparse.Namespace) -> Any:
    from toolkit.selection import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA

    meanings = {
        "criterion": {name: rule.meaning for name, rule in CRITERIA.items()},
        "width_criterion": {name: rule.meaning for name, rule in WIDTH_CRITERIA.items()},
        "layer_criterion": {name: rule.meaning for name, rule in LAYER_CRITERIA.items()},
    }
    if not arguments.json:
        for key, what in zip(meanings, ("experts", "channels of every expert", "decoder layers"), strict=True):
            say(f"[bold]pruning.{key}[/]: which {what} stay")
            for name, meaning in meanings[key].items():
                console.print(f"  {name:<24}{meaning}", markup=False)
    return meanings


def run_tasks(arguments: argparse.Namespace) -> Any:
    from toolkit.tasks import PRESETS

    tasks = {name: preset.about for name, preset in PRESETS.items()}
    if not arguments.json:
        for name, about in tasks.items():
            console.print(f"{name:<24}{about}", markup=False)
    return tasks


def add_recipes_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", help="print this recipe, to make one's own of it: pollard recipes my-data > mine.yaml")
    what.add_argument(
        "--reference", action="store_true", help="every key with type, default and meaning (recipes/reference.yaml)"
    )
    what.add_argument("--schema", action="store_true", help="a JSON schema for editors (recipes/recipe.schema.json)")
    what.add_argument("--choices", action="store_true", help="the names that a recipe allows (toolkit/recipe/choices.py)")


def run_recipes(arguments: argparse.Namespace) -> Any:
    asked = [f"--{key}" for key in ("reference", "schema", "choices") if getattr(arguments, key)]
    asked += [arguments.name] if arguments.name else []
    if asked and arguments.json:
        raise PollardError(
            f"--json is of the list of recipes, and {asked[0]} is a text of its own: leave one of the two out.",
            code="cli.json-of-text",
        )
    if arguments.name:
        sys.stdout.write(_recipe_text(arguments.name))
        return None
    if arguments.choices:
        from toolkit.cli.choices import choices  # imports torch, which `pollard recipes` does not need

        sys.stdout.write(choices())
        return None
    if arguments.reference or arguments.schema:
        from toolkit.recipe import reference as recipe_reference

        sys.stdout.write(recipe_reference.reference() if arguments.reference else recipe_reference.schema())
        return None
    titles = {f"recipes/{path.name}": recipe_title(path) for path in sorted(RECIPES_FOLDER.glob("*.yaml"))}
    if not arguments.json:
        for name, title in titles.items():
            console.print(f"[bold]{name:<36}[/]", end="")
            console.print(title, markup=False)
    return titles


def _recipe_text(name: str) -> str:
    """Of `my-data`, `my-data.yaml` or `recipes/my-data.yaml`. Raises PollardError where none has that name."""
    stem = name.removeprefix("recipes/").removesuffix(".yaml")
    known = {path.relative_to(RECIPES_FOLDER).with_suffix("").as_posix(): path for path in RECIPES_FOLDER.rglob("*.yaml")}
    if stem not in known:
        raise PollardError(f"No recipe `{name}` comes along{did_you_mean(stem, sorted(known))}", code="cli.no-such-recipe")
    return known[stem].read_text(encoding="utf-8")


def recipe_title(path: Path) -> str:
    """The first comment line of a recipe file."""
    lines = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in lines if line and not line.startswith("yaml-language-server")), "").rstrip(":")


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=list(SHELLS), help="; ".join(SHELLS.values()))


def run_completion(arguments: argparse.Namespace) -> None:
    from toolkit.cli.completion import completion_script

    sys.stdout.write(completion_script(arguments.shell, arguments.parser, arguments.verb_parsers))


CRITERIA_VERB = Verb("criteria", "list the criteria", "pollard criteria", run_criteria)
TASKS = Verb("tasks", "list the tasks that have a name", "pollard tasks", run_tasks)
RECIPES = Verb(
    "recipes",
    "list the recipes that come along; print one, or every key of one",
    "pollard recipes my-data > mine.yaml",
    run_recipes,
    add_recipes_arguments,
)
COMPLETION = Verb(
    "completion",
    "print the completion of a shell: verbs, options, recipes, keys and their values",
    "pollard completion bash",
    run_completion,
    add_completion_arguments,
    has_facts=False,
)
