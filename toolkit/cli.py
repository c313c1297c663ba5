"""pollard VERB RECIPE [key.path=value …]: the recipe as far as one stage, on one rank.

pollard calibrate recipes/playground.yaml
pollard select    recipes/playground.yaml pruning.keep=2
pollard inspect   mistralai/Mixtral-8x7B-v0.1
pollard sweep     recipes/playground.yaml pruning.keep=6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2
pollard estimate  recipes/math.yaml --gpus 8 --gpu h100 --cpu-memory 1T
pollard criteria
"""

import argparse
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable

from toolkit.distributed import PATIENCE, console, is_main, rank, say, start, stop
from toolkit.errors import PollardError
from toolkit.recipe_file import load_recipe
from toolkit.sweep_grid import load_grid

VERBS = {  # verb: the last stage it runs
    "calibrate": "calibrate",
    "select": "select",
    "prune": "prune",
    "recover": "recover",
    "evaluate": "evaluate",  # the last of them
    "report": "report",
}


def arguments_of_a_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, e.g. recipes/playground.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. pruning.keep=2 model=path/to/checkpoint")
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    _local_rank(parser)


def _machine_of(parser: argparse.ArgumentParser) -> None:
    """A recipe, and a machine to plan for: this one unless described."""
    parser.add_argument(
        "recipe", help="a YAML file, e.g. recipes/math.yaml; a folder with config.json alone will do as its model"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. finetuning.zero=3")
    parser.add_argument("--gpus", type=int, help="on each node (default: those of this machine)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpu", help="their kind, e.g. a100 or h100: memory and speed")
    parser.add_argument("--gpu-memory", help="of each, e.g. 80G")
    parser.add_argument("--cpu-memory", help="RAM of each node, e.g. 512G (default: this machine's)")


def _local_rank(parser: argparse.ArgumentParser) -> None:
    """What the deepspeed launcher passes, and its environment says already."""
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with overrides wherever they stand (argparse alone refuses them behind an option)."""
    arguments, rest = parser.parse_known_args()
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in overrides)}")
    if overrides:
        arguments.overrides += overrides
    return arguments


def guarded(arguments: argparse.Namespace, until: str | None, sweep: bool = False) -> int:
    """Runs the recipe, or its sweep; a PollardError becomes one message on rank 0 and exit status 1 everywhere."""
    _quieten()
    try:
        work = _sweep(arguments) if sweep else _run(arguments, until)
        start()
        from transformers.utils import logging

        if not (is_main() and console.is_terminal):
            logging.disable_progress_bar()
        work()
    except PollardError as error:
        return _explain(error)
    finally:
        if "torch" in sys.modules:
            stop()
    return 0


def inspect(model: str) -> int:
    """Shows what a model is made of."""
    _quieten()
    from toolkit.moe import anatomy
    from toolkit.report.anatomy import show_anatomy

    try:
        show_anatomy(anatomy(model))
    except PollardError as error:
        return _explain(error)
    return 0


def estimate(arguments: argparse.Namespace) -> int:
    """Shows what a recipe takes on this machine, or on the one described; exit status 0 whether it fits or not."""
    _quieten()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        from toolkit.estimate import Estimator, advice, machine
        from toolkit.report.estimate import show_estimate

        there = machine(arguments.gpus, arguments.nodes, arguments.gpu, arguments.gpu_memory, arguments.cpu_memory)
        estimator = Estimator(there)
        found = estimator.estimate(recipe)
        show_estimate(found, advice(estimator, recipe, found))
    except PollardError as error:
        return _explain(error)
    return 0


def _explain(error: PollardError) -> int:
    if error.told and not is_main():
        return 1
    where = ""
    if not is_main():  # what all ranks find rank 0 tells; then the launcher ends the others
        time.sleep(PATIENCE)
        where = f"rank {rank()} on {socket.gethostname()}: "
    console.print("[bold red]error[/] ", end="")
    console.print(where + str(error), markup=False)
    return 1


def _run(arguments: argparse.Namespace, until: str | None) -> Callable[[], object]:
    """Reads the recipe, whose mistakes are told before anything is imported; returns what runs it."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)

    def work() -> None:
        from toolkit.pipeline import run

        run(recipe, fresh=arguments.fresh, until=until)

    return work


def _sweep(arguments: argparse.Namespace) -> Callable[[], object]:
    grid = load_grid(arguments.recipe, arguments.overrides)

    def work() -> None:
        from toolkit.sweep import sweep

        sweep(grid, fresh=arguments.fresh)

    return work


def _quieten() -> None:
    """Libraries talk a lot while they start; what matters is said by us."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a faster kernel, on machines without a GPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")


def main() -> int:
    parser = argparse.ArgumentParser(prog="pollard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _local_rank(parser)  # deepspeed --module toolkit.cli VERB …: the launcher puts it before the verb
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, stage in VERBS.items():
        arguments_of_a_run(verbs.add_parser(verb, help=f"run the recipe as far as `{stage}`, skipping what is done"))
    arguments_of_a_run(verbs.add_parser("sweep", help="compare pruned models on the dev slice: pruning.keep=6,4,2 …"))
    verbs.add_parser("criteria", help="list the criteria")
    inspected = verbs.add_parser("inspect", help="what a model is made of, and its size with fewer experts; reads no weights")
    inspected.add_argument("model", help="a folder with a transformers checkpoint, or a hub id")
    _machine_of(verbs.add_parser("estimate", help="memory, time and disk of every stage, before anything runs; needs no GPU"))
    arguments = parsed(parser)
    if arguments.verb == "estimate":
        return estimate(arguments)
    if arguments.verb == "inspect":
        return inspect(arguments.model)
    if arguments.verb == "criteria":
        from toolkit.selection import CRITERIA

        for name, criterion in CRITERIA.items():
            say(f"{name:<15} {(criterion.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if arguments.verb == "sweep":
        return guarded(arguments, None, sweep=True)
    return guarded(arguments, VERBS[arguments.verb])


if __name__ == "__main__":
    sys.exit(main())
