"""What a verb is, and the arguments that several verbs share."""

import argparse
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from toolkit.runtime.errors import PollardError


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """For a verb that takes none."""


@dataclass(frozen=True)
class Verb:
    """One `pollard VERB`. Neither function imports more than it needs, so that `pollard --help` and the report of a mistake in a
    recipe take no noticeable time: torch and transformers are imported inside `run`."""

    name: str
    purpose: str
    """One line, for `pollard --help`."""
    example: str
    """One command, for `pollard VERB --help`."""
    run: Callable[[argparse.Namespace], None]
    """Raises PollardError for what the user can mend."""
    add_arguments: Callable[[argparse.ArgumentParser], None] = no_arguments

    @property
    def description(self) -> str:
        """The purpose as a sentence."""
        return f"{self.purpose[0].upper()}{self.purpose[1:]}."


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, e.g. recipes/playground.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="e.g. pruning.keep=2 model=path/to/checkpoint"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="do everything again")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command. Given before the verb, they keep their values after it (hence no defaults)."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    # Passed by the deepspeed launcher, whose environment variables say the same
    parser.add_argument("--local_rank", "--local-rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def check_figures_file(path: Path, keys: Collection[str], of: str) -> None:
    """For a verb that writes figures of something into a file with these `keys`.

    Raises PollardError, before anything is measured, where its folder is not there, and for a file that is there and holds no
    such figures.
    """
    if not path.parent.is_dir():
        raise PollardError(f"--json {path}: there is no folder {path.parent}.", code="cli.no-folder")
    if not path.exists():
        return
    try:
        is_ours = set(keys) <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise PollardError(
            f"--json {path}: that file is there, and holds no figures of {of}. It is left as it is: name another.",
            code="cli.not-figures",
        )
