import math
import random

import pytest
from scipy.stats import ttest_1samp, ttest_rel

from toolkit.runtime.intervals import mcnemar, mean_interval, pair, wilson


# Published values (e.g. Newcombe 1998; R's prop.test without continuity correction), to four digits.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)],
)
def test_wilson_agrees_with_known_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


# Wilson's definition, independently: the ends are the p at which the observed share lies 1.96 standard errors away.
@pytest.mark.parametrize(("correct", "n"), [(1, 3), (5, 10), (599, 1000), (1318, 1319)])
def test_the_ends_of_the_interval_solve_wilsons_equation(correct: int, n: int) -> None:
    for end in wilson(correct, n):
        assert abs(correct / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_the_interval_stays_in_bounds_and_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for n in (1, 7, 1319):
        for correct in (0, 1, n):
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1


# Newcombe 1998, table II, method 10.
@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((0, 29, 1, 0), 0.6666, 0.9882), ((0, 30, 0, 0), 0.8395, 1.0)],
)
def test_published_intervals_of_a_paired_difference(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    assert pair(*counts).interval == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (900, 40, 20, 40), (500, 0, 0, 0), (0, 0, 0, 7), (3, 1, 0, 0)])
def test_a_comparison_turned_round_is_the_same_with_the_other_sign(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    one, other = pair(both, first, second, neither), pair(both, second, first, neither)
    assert one.n == sum(counts) and one.p == other.p
    assert one.difference == -other.difference
    assert one.interval == (pytest.approx(-other.interval[1]), pytest.approx(-other.interval[0]))
    assert one.interval[0] < one.difference < one.interval[1] or 1.0 in map(abs, one.interval)


def test_no_disagreement_leaves_room_for_a_difference_that_shrinks_with_the_questions() -> None:
    widths = [pair(n, 0, 0, 0).interval[1] for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2] > 0


def test_no_questions_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="no questions"):
        pair(0, 0, 0, 0)


# By hand: of 6 questions that divide the two, 6 on one side: 2 / 2^6; 5 on one side: 2 · (1 + 6) / 2^6.
@pytest.mark.parametrize(("one", "other", "p"), [(0, 0, 1.0), (6, 0, 2 / 64), (1, 5, 14 / 64), (3, 3, 1.0), (1, 8, 20 / 512)])
def test_mcnemar_is_the_exact_binomial(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p)


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    chance, covered, trials = random.Random(0), 0, 2000
    for _ in range(trials):  # models of which one alone is right in 3 %, the other alone in 1 %, both in 90 % of the questions
        counts = [0, 0, 0, 0]
        for _ in range(500):
            draw = chance.random()
            counts[0 if draw < 0.90 else 1 if draw < 0.93 else 2 if draw < 0.94 else 3] += 1
        low, high = pair(*counts).interval
        covered += low <= 0.02 <= high
    assert 0.93 < covered / trials < 0.98


# Of numbers, and of the differences of two models on the same questions.
def test_the_interval_of_a_mean_is_students() -> None:
    first, second = [0.5, 0.7, 0.9, 0.6, 0.4], [0.4, 0.9, 0.9, 0.3, 0.35]
    assert mean_interval(first, 0, 1) == pytest.approx(tuple(ttest_1samp(first, 0).confidence_interval()))
    differences = [a - b for a, b in zip(first, second, strict=True)]
    assert mean_interval(differences, -1, 1) == pytest.approx(tuple(ttest_rel(first, second).confidence_interval()))


# Scores are in 0…1, and so are the ends; equal scores are no proof: at the ends the interval is Wilson's.
def test_the_interval_of_a_mean_stays_in_bounds_and_is_never_nothing() -> None:
    assert mean_interval([0.0, 1.0], 0, 1) == (0.0, 1.0)
    for n in (1, 7, 500):
        assert mean_interval([1.0] * n, 0, 1) == pytest.approx(wilson(n, n))
        assert mean_interval([0.0] * n, 0, 1) == pytest.approx(wilson(0, n))
        low, high = mean_interval([0.25] * n, 0, 1)
        assert 0 <= low < 0.25 < high <= 1
        low, high = mean_interval([0.0] * n, -1, 1)
        assert low == -high < 0
    with pytest.raises(ValueError):
        mean_interval([], 0, 1)


# What an interval is for: it holds the true mean about 19 times in 20, of degrees a judge may give.
@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (5, 1, 1, 1, 2), (1, 0, 2, 0, 7)])
def test_the_interval_of_a_mean_covers_it(weights: tuple[int, ...]) -> None:
    degrees, draw = (0.0, 0.25, 0.5, 0.75, 1.0), random.Random(0)
    mean = sum(w * d for w, d in zip(weights, degrees, strict=True)) / sum(weights)
    found = [mean_interval(draw.choices(degrees, weights, k=50), 0, 1) for _ in range(2000)]
    assert 0.93 <= sum(low <= mean <= high for low, high in found) / len(found) <= 0.97
