"""The exception that users see: what is wrong, where, and what to do. Entry points print it without a traceback."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class PollardError(Exception):
    """A mistake in the input or the machine that its reader can mend.

    `code` names the kind of mistake for programs and tests ("plan.other-model"): messages may be worded anew, codes stay.
    """

    already_reported = False
    """Rank 0 raises the error as well and reports it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the message and the attributes, whatever arguments a subclass takes: other ranks raise the same error."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[PollardError], args: tuple[object, ...], attributes: dict[str, object]) -> PollardError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ItemsFailed(PollardError):
    """Some items could not be processed; `items` are their indices. The results of the others are saved."""

    def __init__(self, message: str, items: Sequence[int]) -> None:
        super().__init__(message, code="evaluation.items-failed")
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
    """Collects the errors of several independent checks, to raise them together.

    mistakes = Mistakes()
    config = mistakes.collect(lambda: load_config(path))   # None where that raised a PollardError
    mistakes.collect(lambda: read_jsonl(file))
    mistakes.raise_all()                                   # one PollardError with every message once
    """

    def __init__(self) -> None:
        self._errors: dict[str, PollardError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def collect(self, check: Callable[[], T]) -> T | None:
        """Returns the result of `check`, or None where it raises a PollardError, which is collected. Other exceptions pass."""
        try:
            return check()
        except PollardError as error:
            self._errors.setdefault(str(error), error)
            return None

    def raise_all(self) -> None:
        """Raises what was collected: a single error as it is, several as one with all their messages. Nothing: returns."""
        if len(self._errors) == 1:
            raise next(iter(self._errors.values()))
        if self._errors:
            together = PollardError("\n".join(self._errors), code="several")
            together.already_reported = all(error.already_reported for error in self._errors.values())
            raise together
