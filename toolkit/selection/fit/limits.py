"""What a shape may be at most."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import FitSize


@dataclass(frozen=True)
class Limit:
    """One number that a shape must not exceed."""

    key: str
    """Of `pruning.fit`: "bytes"."""
    most: int
    amount: Callable[[FitShape, FitSize], int]
    """What a shape has of it."""
    text: Callable[[int], str] = str
    """A number for people: "12.0 GiB"."""

    def met_by(self, shape: FitShape, size: FitSize) -> bool:
        return self.amount(shape, size) <= self.most


def exceeded(limits: Iterable[Limit], shape: FitShape, size: FitSize) -> Limit | None:
    """The first that the shape does not meet."""
    return next((limit for limit in limits if not limit.met_by(shape, size)), None)
