"""Verbs that list what there is: `pollard criteria`, `tasks`, `recipes` and `completion`."""

import argparse
import sys
from pathlib import Path

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console, say

RECIPES_FOLDER = Path(__file__).parents[3] / "recipes"
SHELLS = {  # shell: how to switch completion on
    "bash": 'eval "$(pollard completion bash)", in ~/.bashrc',
    "zsh": 'eval "$(pollard completion zsh)" behind compinit, in ~/.zshrc',
    "fish": "pollard completion fish > ~/.config/fish/completions/pollard.fish",
}


def run_criteria(arguments: argparse.Namespace) -> None:
    from toolkit.selection import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA

    for key, what, meanings in (
        ("criterion", "experts", {name: rule.meaning for name, rule in CRITERIA.items()}),
        ("width_criterion", "channels of every expert", {name: rule.meaning for name, rule in WIDTH_CRITERIA.items()}),
        ("layer_criterion", "decoder layers", {name: rule.meaning for name, rule in LAYER_CRITERIA.items()}),
    ):
        say(f"[bold]pruning.{key}[/]: which {what} stay")
        for name, meaning in meanings.items():
            console.print(f"  {name:<24}{meaning}", markup=False)


def run_tasks(arguments: argparse.Namespace) -> None:
    from toolkit.tasks import PRESETS

    for name, preset in PRESETS.items():
        console.print(f"{name:<24}{preset.about}", markup=False)


def add_recipes_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--reference", action="store_true", help="every key with type, default and meaning (recipes/reference.yaml)"
    )
    what.add_argument("--schema", action="store_true", help="a JSON schema for editors (recipes/recipe.schema.json)")
    what.add_argument("--choices", action="store_true", help="the names that a recipe allows (toolkit/recipe/choices.py)")


def run_recipes(arguments: argparse.Namespace) -> None:
    if arguments.choices:
        from toolkit.cli.choices import choices  # imports torch, which `pollard recipes` does not need

        sys.stdout.write(choices())
        return
    if arguments.reference or arguments.schema:
        from toolkit.recipe import reference as recipe_reference

        sys.stdout.write(recipe_reference.reference() if arguments.reference else recipe_reference.schema())
        return
    for path in sorted(RECIPES_FOLDER.glob("*.yaml")):
        console.print(f"[bold]{f'recipes/{path.name}':<36}[/]", end="")
        console.print(recipe_title(path), markup=False)


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
    "list the recipes that come along, or every key of one",
    "pollard recipes --reference",
    run_recipes,
    add_recipes_arguments,
)
COMPLETION = Verb(
    "completion",
    "print the completion of a shell: verbs, options, recipes, keys and their values",
    "pollard completion bash",
    run_completion,
    add_completion_arguments,
)
