"""Two models on the same questions, as reports tell it.

{"first": "recovered", "second": "original", "both": 497, "only_first": 0, "only_second": 2, "neither": 1, …}
"""

from typing import Generic, Self, TypeVar

from toolkit.report.measurements import Facts, Interval, Number
from toolkit.runtime.intervals import Pair

Side = TypeVar("Side")
SIGNIFICANT = 0.05  # p below it


class PairedComparison(Facts, Generic[Side]):
    """Two models on the same questions. The counts are of questions; `difference` is the share that the first answers rightly
    minus the second's, with its 95 % interval (Newcombe); `p` is McNemar's."""

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

    @classmethod
    def of(cls, first: Side, second: Side, statistics: Pair) -> Self:
        """The comparison of `first` and `second` with these counts, difference and p."""
        significant = statistics.p < SIGNIFICANT
        return cls(first=first, second=second, **statistics._asdict(), n=statistics.n, significant=significant)
