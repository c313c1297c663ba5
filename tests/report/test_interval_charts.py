"""Law: a dot lies within its whiskers, all on an axis that its intervals need; zero and the margin are on the decisive one."""

import pytest

from toolkit.recipe.roles import Role
from toolkit.report.facts import ModelResult, RolePair
from toolkit.report.interval_charts import decision_chart, score_chart
from toolkit.report.margin import MarginFacts
from toolkit.runtime.intervals import pair, wilson


def compared(both: int, only_first: int, only_second: int, neither: int) -> RolePair:
    return RolePair.of(Role.RECOVERED, Role.ORIGINAL, pair(both, only_first, only_second, neither))


def result(correct: int, n: int) -> ModelResult:
    return ModelResult(score=correct / n, correct=correct, n=n, interval=wilson(correct, n))


def test_scores_near_each_other_are_told_apart_and_the_axis_holds_every_interval() -> None:
    found = score_chart({Role.ORIGINAL: result(1986, 2000), Role.RECOVERED: result(1964, 2000)})
    assert found is not None and not found.whole
    for row in found.rows.values():
        assert 0 <= row.low < row.middle < row.high <= 100
    assert found.rows[Role.ORIGINAL].middle - found.rows[Role.RECOVERED].middle > 25  # 1.1 points; from zero it would be 1.1


@pytest.mark.parametrize("correct", [0, 3, 5])
def test_an_axis_of_shares_never_leaves_0_to_100(correct: int) -> None:
    found = score_chart({Role.ORIGINAL: result(correct, 5), Role.PRUNED: result(5 - correct, 5)})
    assert found is not None
    assert all(0 <= float(tick.label) <= 100 for tick in found.ticks)
    assert all(0 <= end <= 100 for row in found.rows.values() for end in (row.low, row.middle, row.high))


@pytest.mark.parametrize("margin", [None, 0.1, 2.0, 50.0])
def test_the_decisive_axis_holds_zero_the_margin_and_the_interval(margin: float | None) -> None:
    counts = compared(960, 5, 20, 15)
    found = decision_chart(counts, MarginFacts.of(margin, counts.interval) if margin else None)
    assert found is not None
    assert 0 <= found.difference.low < found.difference.middle < found.difference.high <= 100
    assert found.difference.high < found.zero <= 100  # the loss is significant
    assert (found.margin is None) == (margin is None)
    if margin:
        assert found.margin is not None and 0 <= found.margin < found.zero
        drawn_beyond = found.difference.low > found.margin
        assert drawn_beyond == MarginFacts.of(margin, counts.interval).shown


def test_two_alike_models_have_an_axis_too() -> None:
    found = decision_chart(compared(0, 0, 0, 4), None)
    assert found is not None and 0 <= found.difference.low <= found.zero <= found.difference.high <= 100


def test_nothing_compared_is_no_chart() -> None:
    assert decision_chart(None, None) is None and score_chart({}) is None
