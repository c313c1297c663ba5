"""What a verb is, how its facts become JSON, and the arguments that several verbs share."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from toolkit.cli.exit_status import exit_status_of
from toolkit.runtime.distributed import is_main
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
    run: Callable[[argparse.Namespace], Any]
    """Returns the facts that `--json` prints (on rank 0), of anything that `plain` takes; with `arguments.json` it shows no table
    of them. Raises PollardError for what the user can mend."""
    add_arguments: Callable[[argparse.ArgumentParser], None] = no_arguments
    has_facts: bool = True
    """Whether there is anything that `--json` could print: False for a conversation, and for a text of another form."""

    @property
    def description(self) -> str:
        """The purpose as a sentence."""
        return f"{self.purpose[0].upper()}{self.purpose[1:]}."


def run_verb(run: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> int:
    """Runs it, prints the facts where `--json` asks for them, and returns the exit status. Of all that is printed meanwhile (the
    screens of a run, warnings, what a compiler writes) nothing reaches stdout then, but stderr; neither do mistakes."""
    debug = getattr(arguments, "debug", False)
    if not getattr(arguments, "json", False):
        return exit_status_of(lambda: run(arguments), debug)
    facts: list[Any] = []
    with _stdout_to_stderr():
        status = exit_status_of(lambda: facts.append(run(arguments)), debug)
    if facts and is_main():
        text = json.dumps(plain(facts[0]), indent=1, ensure_ascii=False, allow_nan=False)
        status = exit_status_of(lambda: print(text, flush=True), debug)
    return status


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Also of processes that are started inside, which know the file descriptor only."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def plain(facts: Any) -> JsonValue:
    """Facts as JSON has them: dataclasses, named tuples and models by their fields; null for numbers that are not finite, and the
    text of what JSON has no form for."""
    if isinstance(facts, BaseModel):
        return plain(facts.model_dump(mode="json"))
    if is_dataclass(facts) and not isinstance(facts, type):
        return {field.name: plain(getattr(facts, field.name)) for field in fields(facts)}
    if isinstance(facts, tuple) and hasattr(facts, "_asdict"):
        return plain(facts._asdict())
    if isinstance(facts, Mapping):
        return {str(key): plain(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple | set | frozenset):
        return [plain(value) for value in facts]
    if isinstance(facts, float):
        return facts if math.isfinite(facts) else None
    return facts if facts is None or isinstance(facts, bool | int | str) else str(facts)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as JSON on stdout, and everything else on stderr")


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
        raise PollardError(f"--save {path}: there is no folder {path.parent}.", code="cli.no-folder")
    if not path.exists():
        return
    try:
        is_ours = set(keys) <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise PollardError(
            f"--save {path}: that file is there, and holds no figures of {of}. It is left as it is: name another.",
            code="cli.not-figures",
        )
