"""The one exception users see: what is wrong, where, and what to do. Entry points print it without a traceback."""

import difflib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class PollardError(Exception):
    """A mistake in the input or the machine that its reader can mend.

    `code` names the kind of mistake for programs and tests ("plan.other-model"): messages may be worded anew, codes stay.
    """

    already_reported = False
    """Rank 0 raises it, too, and reports it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ItemsFailed(PollardError):
    """Some items could not be judged; what could is saved."""

    def __init__(self, message: str, items: Sequence[int]) -> None:
        super().__init__(message, "evaluation.items-failed")
        self.items = list(items)


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """ ". Did you mean `x`?" where something allowed is close to `word`, else "."."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f". Did you mean `{close[0]}`?" if close else "."


def first_of(faults: Sequence[str], shown: int = 5) -> str:
    """The first `shown` of many faults of one kind, a line each, and how many more there are."""
    more = [f"… and {len(faults) - shown:,} more"] if len(faults) > shown else []
    return "\n".join([*faults[:shown], *more])


class Mistakes:
    """Several checks that do not depend on each other: all of them are made, and what they find is raised together.

    mistakes = Mistakes()
    config = mistakes.collect(lambda: load_config(path))   # None where that raised a PollardError
    mistakes.collect(lambda: read_jsonl(file))
    mistakes.raise_all()                                   # one PollardError, each mistake once
    """

    def __init__(self) -> None:
        self._found: dict[str, PollardError] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def collect(self, check: Callable[[], T]) -> T | None:
        """What `check` returns, or None where it raises a PollardError, which is kept. Other exceptions pass."""
        try:
            return check()
        except PollardError as error:
            self._found.setdefault(str(error), error)
            return None

    def raise_all(self) -> None:
        """Raises what was found: a single error as it is, several as one with all their messages."""
        if len(self._found) == 1:
            raise next(iter(self._found.values()))
        if self._found:
            together = PollardError("\n".join(self._found), "several")
            together.already_reported = all(error.already_reported for error in self._found.values())
            raise together
