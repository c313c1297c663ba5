"""`pollard criteria`: the rules by which experts are chosen."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import say


def run(arguments: argparse.Namespace) -> None:
    from toolkit.selection import CRITERIA

    for name, criterion in CRITERIA.items():
        say(f"{name:<15} {criterion.meaning}")


CRITERIA_VERB = Verb("criteria", "list the criteria", "pollard criteria", lambda parser: None, run)
