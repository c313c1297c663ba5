"""`pollard estimate RECIPE`: what a recipe takes on this machine, or on the one described."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.recipe.file import load_recipe


def arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe, and a machine to plan for: this one unless described."""
    parser.add_argument(
        "recipe", help="a YAML file, e.g. recipes/math.yaml; a folder with config.json alone will do as its model"
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.path=value", help="e.g. finetuning.zero=3")
    parser.add_argument("--gpus", type=int, help="on each node (default: those of this machine)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpu", help="their kind, e.g. a100 or h100: memory and speed")
    parser.add_argument("--gpu-memory", help="of each, e.g. 80G")
    parser.add_argument("--cpu-memory", help="RAM of each node, e.g. 512G (default: this machine's)")


def run(arguments: argparse.Namespace) -> None:
    """Exit status 0 whether it fits or not: the last line says so."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from toolkit.cli.estimate_table import show_estimate
    from toolkit.estimate import resolve_machine
    from toolkit.pipeline.estimator import Estimator
    from toolkit.pipeline.relief import advice, combined_advice

    there = resolve_machine(arguments.gpus, arguments.nodes, arguments.gpu, arguments.gpu_memory, arguments.cpu_memory)
    estimator = Estimator(there)
    found = estimator.estimate(recipe)
    show_estimate(found, advice(estimator, recipe, found), combined_advice(estimator, recipe, found))


ESTIMATE = Verb(
    "estimate",
    "memory, time and disk of every stage, before anything runs; needs no GPU",
    "pollard estimate recipes/math.yaml --gpus 8 --gpu h100 --cpu-memory 1T",
    arguments,
    run,
)
