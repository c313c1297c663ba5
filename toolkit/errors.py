"""The one exception users see: what is wrong, where, and what to do. Entry points print it without a traceback."""

import difflib
from collections.abc import Sequence


class PollardError(Exception):
    """A mistake in the input or the machine that its reader can mend."""

    told = False
    """Rank 0 raises it, too, and tells it."""


class ItemsFailed(PollardError):
    """Some items could not be judged; what could is saved."""

    def __init__(self, message: str, items: Sequence[int]) -> None:
        super().__init__(message)
        self.items = list(items)


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """ ". Did you mean `x`?" where something allowed is close to `word`, else "."."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f". Did you mean `{close[0]}`?" if close else "."


def first_of(faults: Sequence[str], shown: int = 5) -> str:
    """The first `shown` of many faults of one kind, a line each, and how many more there are."""
    more = [f"… and {len(faults) - shown:,} more"] if len(faults) > shown else []
    return "\n".join([*faults[:shown], *more])
