"""Shares of right answers and means of degrees, with what chance allows: one model's interval, and two models on the same
questions."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

Z = 1.959963984540054  # 97.5th percentile of the normal distribution: a two-sided 95 % interval


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927): stays in [0, 1] and is honest at 0 and n correct."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z * Z
    centre, spread = p + z2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return low if correct else 0.0, high if correct < n else 1.0  # exactly, without the rounding of the roots


def mean_interval(numbers: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """The 95 % interval of the mean of numbers in [lowest, highest]: Student's t, as for evaluations that give degrees (Miller,
    arXiv 2411.00640), cut off at the ends. Of the differences of two models, question by question, it is the paired one.

    Equal numbers have no spread to go by, and a t interval of no width. So where all are equal, at most that share of others may
    lie elsewhere that none of as many questions leaves open (the upper end of `wilson(0, n)`): at the ends it is Wilson's.
    Raises ValueError for no numbers.
    """
    n = len(numbers)
    if n == 0:
        raise ValueError("no numbers have no mean")
    mean = math.fsum(numbers) / n
    if min(numbers) == max(numbers):
        low, high = (end - mean for end in (lowest, highest))
        share = wilson(0, n)[1]
        return mean + share * low, mean + share * high
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(numbers) / math.sqrt(n)
    return max(mean - half, float(lowest)), min(mean + half, float(highest))


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p of McNemar's paired test (1947): were it chance which of two models is alone right, how often would
    it fall at least this unevenly? Binomial with 1/2 over the questions that exactly one of them answers rightly."""
    n, fewer = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


class Pair(NamedTuple):
    """Two models on the same questions. `difference` is the share of the first minus that of the second, a fraction, with
    its 95 % interval; `p` is McNemar's."""

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither


def pair(both: int, only_first: int, only_second: int, neither: int) -> Pair:
    """The comparison that these four counts of questions make; raises ValueError where all are 0."""
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("two models cannot be compared on no questions")
    interval = _newcombe(both, only_first, only_second, neither)
    return Pair(
        both, only_first, only_second, neither, (only_first - only_second) / n, interval, mcnemar(only_first, only_second)
    )


def pair_of(first: str, second: str) -> Pair:
    """The comparison of two models from a digit per question, 1 for right, in the same order."""
    counts = Counter(zip(first, second, strict=True))
    return pair(counts["1", "1"], counts["1", "0"], counts["0", "1"], counts["0", "0"])


def _newcombe(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of a paired difference from the two Wilson intervals and the correlation of the answers
    (Newcombe 1998, Statistics in Medicine 17, 2635–2650, method 10): honest where hardly any question divides the two."""
    n = both + only_first + only_second + neither
    right = both + only_first, both + only_second
    (low_1, high_1), (low_2, high_2) = wilson(right[0], n), wilson(right[1], n)
    p_1, p_2 = right[0] / n, right[1] / n
    margins = right[0] * (n - right[0]) * right[1] * (n - right[1])
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # his correction for continuity
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def spread(first: float, second: float) -> float:
        return math.sqrt(max(first * first - 2 * phi * first * second + second * second, 0.0))

    return p_1 - p_2 - spread(p_1 - low_1, high_2 - p_2), p_1 - p_2 + spread(high_1 - p_1, p_2 - low_2)
