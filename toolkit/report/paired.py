"""Two models on the same questions, as reports tell it.

{"first": "recovered", "second": "original", "both": 497, "only_first": 0, "only_second": 2, "neither": 1, …}
"""

import math
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from pydantic import Field

from toolkit.report.measurements import Facts, Interval, Number
from toolkit.runtime.intervals import Pair, mean_interval

Side = TypeVar("Side")
SIGNIFICANT = 0.05  # p below it


class PairedComparison(Facts, Generic[Side]):
    """Two models on the same questions. The counts are of questions; `difference` is the share that the first answers rightly
    minus the second's, with its 95 % interval (Newcombe); `p` is McNemar's. Where the scorer gives degrees, `credit_difference`
    is that of their means, with its own (Student's t of the differences, question by question)."""

    first: Side
    second: Side
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: Number
    interval: Interval
    p: Number
    n: int
    significant: bool
    credit_difference: Number | None = Field(default=None, exclude_if=lambda number: number is None)
    credit_interval: Interval | None = Field(default=None, exclude_if=lambda ends: ends is None)

    @classmethod
    def of(cls, first: Side, second: Side, statistics: Pair, credits: Sequence[float] = ()) -> Self:
        """The comparison of `first` and `second` with these counts, difference and p; `credits`: the differences of their
        degrees, where there are any."""
        made = cls(
            first=first, second=second, **statistics._asdict(), n=statistics.n, significant=statistics.p < SIGNIFICANT
        )  # fmt: skip
        if not credits:
            return made
        degrees = {"credit_difference": math.fsum(credits) / len(credits), "credit_interval": mean_interval(credits, -1, 1)}
        return made.model_copy(update=degrees)
