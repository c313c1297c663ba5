"""`pollard sweep RECIPE`: compare prunings on the dev slice."""

import argparse

from toolkit.cli.bugs import tracebacks_in
from toolkit.cli.interrupt import resumable
from toolkit.cli.verbs.verb import Verb, add_run_arguments
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.runtime.distributed import join


def run(arguments: argparse.Namespace) -> None:
    grid = load_grid(arguments.recipe, arguments.overrides)
    with resumable(), tracebacks_in(RunDirectory(grid.recipe.name).path):
        join()
        from toolkit.pipeline.sweep import sweep

        sweep(grid, fresh=arguments.fresh)


SWEEP = Verb(
    "sweep",
    "compare pruned models on the dev slice: pruning.keep=6,4,2 …",
    "pollard sweep recipes/playground.yaml pruning.keep=6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2",
    add_run_arguments,
    run,
)
