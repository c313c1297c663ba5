"""Law: a dot lies within its whiskers, all on the axis that its intervals need; zero and the margin are on the decisive one."""

import pytest

from toolkit.recipe.roles import Role
from toolkit.report.dots import decision, score_dots
from toolkit.report.facts import ModelResult, RolePair
from toolkit.runtime.intervals import pair, wilson


def compared(both: int, only_first: int, only_second: int, neither: int) -> RolePair:
    return RolePair.of(Role.RECOVERED, Role.ORIGINAL, pair(both, only_first, only_second, neither))


def result(correct: int, n: int) -> ModelResult:
    return ModelResult(score=correct / n, correct=correct, n=n, interval=wilson(correct, n))


def test_scores_near_each_other_are_told_apart_and_the_axis_holds_every_interval() -> None:
    found = score_dots({Role.ORIGINAL: result(1986, 2000), Role.RECOVERED: result(1964, 2000)})
    assert found is not None
    for low, middle, high in found.rows.values():
        assert 0 <= low < middle < high <= 100
    assert found.rows[Role.ORIGINAL][1] - found.rows[Role.RECOVERED][1] > 25  # 1.1 points; on an axis from zero it would be 1.1


@pytest.mark.parametrize("correct", [0, 3, 5])
def test_an_axis_of_shares_never_leaves_0_to_100(correct: int) -> None:
    found = score_dots({Role.ORIGINAL: result(correct, 5), Role.PRUNED: result(5 - correct, 5)})
    assert found is not None
    assert all(0 <= float(tick.label.removesuffix(" %")) <= 100 and 0 <= tick.at <= 100 for tick in found.ticks)
    assert all(0 <= end <= 100 for row in found.rows.values() for end in row)


@pytest.mark.parametrize(("both", "neither"), [(960, 15), (99_960, 15), (10, 0)])
def test_no_two_ticks_read_alike(both: int, neither: int) -> None:
    pair_ = compared(both, 0, 2, neither)
    found, dots = (
        decision(pair_, 0.1),
        score_dots({Role.ORIGINAL: result(both, both + neither), Role.PRUNED: result(both, both + neither)}),
    )
    assert found is not None and dots is not None
    for ticks in (found.ticks, dots.ticks):
        labels = [tick.label for tick in ticks]
        assert len(set(labels)) == len(labels) >= 2


@pytest.mark.parametrize("margin", [None, 0.1, 2.0, 50.0])
def test_the_decisive_axis_holds_zero_the_margin_and_the_interval(margin: float | None) -> None:
    found = decision(compared(960, 5, 20, 15), margin)
    assert found is not None
    assert 0 <= found.low < found.middle < found.high <= 100
    assert found.high < found.zero <= 100  # the loss is significant
    assert (found.margin is None) == (margin is None)
    if found.margin is not None:
        assert 0 <= found.margin < found.zero


def test_two_alike_models_have_an_axis_too() -> None:
    found = decision(compared(0, 0, 0, 4), None)
    assert found is not None and 0 <= found.low <= found.zero <= found.high <= 100


def test_nothing_compared_is_no_chart() -> None:
    assert decision(None, 2) is None and score_dots({}) is None
