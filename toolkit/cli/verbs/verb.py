"""What a verb is, and the arguments that verbs share."""

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """`arguments` adds its own to the parser; `run` raises PollardError for what the user can mend. Neither imports more than
    it needs: `pollard --help` and a mistake in a recipe are told in an instant."""

    name: str
    purpose: str  # one line, for `pollard --help`
    example: str  # one command, for `pollard VERB --help`
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, e.g. recipes/playground.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="e.g. pruning.keep=2 model=path/to/checkpoint"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="do everything again")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What every command takes; given before a verb, it stays said behind it."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    # What the deepspeed launcher passes, and its environment says already
    parser.add_argument("--local_rank", "--local-rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
