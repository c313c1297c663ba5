"""`pollard tasks`: what `task:` may name."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console


def run(arguments: argparse.Namespace) -> None:
    from toolkit.tasks import PRESETS

    for name, preset in PRESETS.items():
        console.print(f"{name:<24}{preset.about}", markup=False)


TASKS = Verb("tasks", "list the tasks that have a name", "pollard tasks", lambda parser: None, run)
