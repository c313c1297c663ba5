"""The files of a run's results, read or refused: a file that is there but damaged is an error that says what to do."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from toolkit.report.answer import Answer
from toolkit.runtime.errors import PollardError

T = TypeVar("T")


def read_file(path: Path, parse: Callable[[str], T]) -> T | None:
    """The parsed content of a file; None where there is none. Raises PollardError where `parse` raises ValueError."""
    if not path.exists():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PollardError(
            f"{path} is damaged ({short_reason(error)}). Remove it: `pollard run` makes again what it needs.",
            code="report.damaged-file",
        ) from None


def short_reason(error: ValueError) -> str:
    """Of a ValidationError its first fault: "score: Field required"."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))


def read_answers(path: Path) -> list[Answer]:
    """The lines of a predictions file; none where there is no file. Raises PollardError for one that is damaged."""
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [field.name for field in fields(Answer)]
        return [Answer(**({"credit": None} | {name: line[name] for name in names if name in line})) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        scores = f"{path.name.partition('.')[0]}.json"
        raise PollardError(
            f"{path} is damaged ({error}). Remove it, and {scores} beside it: `pollard run` makes both again.",
            code="report.damaged-predictions",
        ) from None
