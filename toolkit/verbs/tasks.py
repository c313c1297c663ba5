"""`pollard tasks`: what `task:` may name."""

import argparse

from toolkit.distributed import console
from toolkit.verbs.verb import Verb


def run(arguments: argparse.Namespace) -> None:
    from toolkit.tasks import PRESETS

    for name, preset in PRESETS.items():
        console.print(f"{name:<24}{preset.about}", markup=False)


TASKS = Verb("tasks", "list the tasks that have a name", "pollard tasks", lambda parser: None, run)
