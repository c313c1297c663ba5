"""`pollard inspect MODEL`: what a model is made of."""

import argparse

from toolkit.cli.verbs.verb import Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder with a transformers checkpoint, or a hub id")


def run(arguments: argparse.Namespace) -> None:
    from toolkit.cuts.model_summary import model_summary
    from toolkit.report.inspection import show_model_summary

    show_model_summary(model_summary(arguments.model))


INSPECT = Verb(
    "inspect",
    "what a model is made of, and its size with fewer experts; reads no weights",
    "pollard inspect mistralai/Mixtral-8x7B-v0.1",
    arguments,
    run,
)
