"""`pollard push RUN USER/NAME`: the result and its model card, to the hub."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import say


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, e.g. runs/playground")
    parser.add_argument("repository", help="user/name or organisation/name; made where it is not there yet")
    parser.add_argument("--public", action="store_true", help="for everybody to see, where it is made (default: private)")


def run(arguments: argparse.Namespace) -> None:
    from toolkit.pipeline.push import push

    say(push(arguments.run, arguments.repository, arguments.public))


PUSH = Verb(
    "push",
    "upload the recovered model and its card to the hub (private unless --public)",
    "pollard push runs/playground me/playground-half",
    arguments,
    run,
)
