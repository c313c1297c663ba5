"""`pollard inspect MODEL`: what a model is made of."""

import argparse

from toolkit.verbs.verb import Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder with a transformers checkpoint, or a hub id")


def run(arguments: argparse.Namespace) -> None:
    from toolkit.moe import anatomy
    from toolkit.report.anatomy import show_anatomy

    show_anatomy(anatomy(arguments.model))


INSPECT = Verb(
    "inspect",
    "what a model is made of, and its size with fewer experts; reads no weights",
    "pollard inspect mistralai/Mixtral-8x7B-v0.1",
    arguments,
    run,
)
