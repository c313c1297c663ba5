"""`pollard sweep RECIPE`: compare prunings on the dev slice."""

import argparse

from toolkit.distributed import join
from toolkit.run_directory import RunDirectory
from toolkit.sweep_grid import load_grid
from toolkit.terminal.bugs import tracebacks_in
from toolkit.terminal.interrupt import resumable
from toolkit.verbs.verb import Verb, arguments_of_a_run


def run(arguments: argparse.Namespace) -> None:
    grid = load_grid(arguments.recipe, arguments.overrides)
    with resumable(), tracebacks_in(RunDirectory(grid.recipe.name).path):
        join()
        from toolkit.sweep import sweep

        sweep(grid, fresh=arguments.fresh)


SWEEP = Verb(
    "sweep",
    "compare pruned models on the dev slice: pruning.keep=6,4,2 …",
    "pollard sweep recipes/playground.yaml pruning.keep=6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2",
    arguments_of_a_run,
    run,
)
