"""`pollard run | calibrate | select | prune | recover | evaluate | report RECIPE`: the recipe, or as far as one stage."""

import argparse
import time

from toolkit.cli.bugs import tracebacks_in
from toolkit.cli.interrupt import resumable
from toolkit.cli.verbs.verb import Verb, add_run_arguments
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import load_recipe
from toolkit.runtime.distributed import join
from toolkit.runtime.typed_command import command_again

UNTIL = {  # verb: the last stage it runs
    "run": None,
    "calibrate": "calibrate",
    "select": "select",
    "prune": "prune",
    "recover": "recover",
    "evaluate": "evaluate",  # the last of them
    "report": "report",
}


def run(arguments: argparse.Namespace, until: str | None) -> None:
    """The recipe as far as stage `until`, on every rank; its mistakes are told before anything is imported."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    started = time.monotonic()
    with resumable(), tracebacks_in(RunDirectory(recipe.name).path):
        join()
        from toolkit.cli.screens import last_screen
        from toolkit.pipeline import runner as pipeline

        directory = pipeline.run(recipe, fresh=arguments.fresh, until=until)
        again = command_again(*((verb, "run") for verb in UNTIL))  # the stages that are left, whichever verb it was
        last_screen(directory, time.monotonic() - started, again)


def _verb(name: str, until: str | None) -> Verb:
    purpose = (
        f"run the recipe as far as `{until}`, skipping what is done" if until else "run the whole recipe, skipping what is done"
    )
    example = f"pollard {name} recipes/playground.yaml pruning.keep=2"
    return Verb(name, purpose, example, add_run_arguments, lambda arguments: run(arguments, until))


RUNS = [_verb(name, until) for name, until in UNTIL.items()]
