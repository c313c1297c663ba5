"""`pollard recipes`: the recipes that come with the toolkit, and every key of one."""

import argparse
import sys
from pathlib import Path

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console

FOLDER = Path(__file__).parents[3] / "recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--reference", action="store_true", help="every key with type, default and meaning (recipes/reference.yaml)"
    )
    what.add_argument("--schema", action="store_true", help="a JSON schema for editors (recipes/recipe.schema.json)")


def run(arguments: argparse.Namespace) -> None:
    from toolkit.recipe import reference as recipe_reference

    if arguments.reference or arguments.schema:
        sys.stdout.write(recipe_reference.reference() if arguments.reference else recipe_reference.schema())
        return
    for path in sorted(FOLDER.glob("*.yaml")):
        console.print(f"[bold]{f'recipes/{path.name}':<36}[/]", end="")
        console.print(title(path), markup=False)


def title(path: Path) -> str:
    """What a recipe says of itself first."""
    lines = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in lines if line and not line.startswith("yaml-language-server")), "").rstrip(":")


RECIPES = Verb("recipes", "list the recipes that come along, or every key of one", "pollard recipes --reference", arguments, run)
