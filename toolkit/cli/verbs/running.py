"""Verbs that run a recipe: `pollard run | calibrate | select | prune | refit | recover | evaluate | report | sweep RECIPE`."""

import argparse
import time
from functools import partial
from typing import Any

from toolkit.cli.exit_status import tracebacks_in
from toolkit.cli.interrupt import resumable
from toolkit.cli.verbs.verb import Verb, add_run_arguments
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import load_recipe
from toolkit.runtime.distributed import is_main, join
from toolkit.runtime.errors import PollardError
from toolkit.runtime.typed_command import command_again

LAST_STAGES = {  # verb: the last stage that it runs; None: all of them
    "run": None,
    "fit": "fit/measure",
    "calibrate": "calibrate",
    "select": "select",
    "prune": "prune",
    "refit": "refit",
    "recover": "recover",
    "evaluate": "evaluate",  # the last of them
    "report": "report",
}


def run_recipe(arguments: argparse.Namespace, until: str | None = None) -> Any:
    """Runs the recipe as far as stage `until`, on every rank. Its mistakes are reported before torch is imported. The facts are
    those of report.json, as far as they are known by then."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if until == "refit" and not recipe.pruning.refit:
        raise PollardError(
            f"{arguments.recipe} has no refit: say pruning.refit=true, on the command line or in the file.",
            code="refit.not-asked",
        )
    if until == "recover" and "recovered" not in recipe.evaluation.models:
        raise PollardError(
            f"{arguments.recipe} has no recovered model, so nothing is trained: say evaluation.models=[recovered], or leave the "
            "key out.",
            code="recover.not-asked",
        )
    if until == LAST_STAGES["fit"] and recipe.pruning.fit is None:
        raise PollardError(
            f"{arguments.recipe} says which shape the model gets: give limits instead, e.g. pruning.fit.bytes=12G, and no keep, "
            "width or layers.",
            code="fit.not-asked",
        )
    started = time.monotonic()
    with resumable(), tracebacks_in(RunDirectory(recipe.name).path):
        join()
        # Imported here for start-up time: both import torch
        from toolkit.cli.last_screen import last_screen
        from toolkit.pipeline import runner as pipeline
        from toolkit.pipeline.run_facts import read_run_facts
        from toolkit.pipeline.show_fit import show_fit_of

        directory = pipeline.run(recipe, fresh=arguments.fresh, until=until)
        if until == LAST_STAGES["fit"]:
            show_fit_of(directory)
        again = command_again(*((verb, "run") for verb in LAST_STAGES))  # the stages that are left, whichever verb it was
        last_screen(directory, time.monotonic() - started, again)
        return read_run_facts(directory.path).as_json() if arguments.json and is_main() else None


def run_sweep(arguments: argparse.Namespace) -> Any:
    grid = load_grid(arguments.recipe, arguments.overrides)
    with resumable(), tracebacks_in(RunDirectory(grid.recipe.name).path):
        join()
        from toolkit.pipeline.sweep import sweep  # here for start-up time: it imports torch

        return sweep(grid, fresh=arguments.fresh).as_json()


def _stage_verb(name: str, until: str | None) -> Verb:
    purpose = (
        f"run the recipe as far as `{until}`, skipping what is done" if until else "run the whole recipe, skipping what is done"
    )
    what = "fit.yaml pruning.fit.bytes=6M" if name == "fit" else "playground.yaml pruning.keep=2"
    example = f"pollard {name} recipes/{what}"
    return Verb(name, purpose, example, partial(run_recipe, until=until), add_run_arguments)


STAGE_VERBS = [_stage_verb(name, until) for name, until in LAST_STAGES.items()]
SWEEP = Verb(
    "sweep",
    "compare pruned models on the dev slice: pruning.keep=6,4,2 …",
    "pollard sweep recipes/playground.yaml pruning.keep=6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2",
    run_sweep,
    add_run_arguments,
)
