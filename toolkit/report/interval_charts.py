"""Scores and their decisive difference as dots with whiskers, each on the axis that its intervals need.

A bar has to begin at zero, and then 98.2 and 99.3 % look alike; a dot need not. Places are percent of the drawing's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.recipe.roles import Role
from toolkit.report.charts import nice_ticks
from toolkit.report.facts import ModelResult, RolePair
from toolkit.report.heat import Tick
from toolkit.report.margin import MarginFacts
from toolkit.runtime.formatting import points


@dataclass(frozen=True)
class Whisker:
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class ScoreChart:
    """Each evaluated model's score and interval on one axis of percent."""

    rows: dict[Role, Whisker]
    ticks: list[Tick]
    whole: bool  # the axis reaches from 0 to 100 %


@dataclass(frozen=True)
class DecisionChart:
    """The result minus the original: `zero` is where both are equal, `margin` where a loss is as large as the margin."""

    difference: Whisker
    zero: float
    margin: float | None
    ticks: list[Tick]


def score_chart(models: Mapping[Role, ModelResult]) -> ScoreChart | None:
    """None where nothing was evaluated. The axis encloses all intervals, and stays within 0 and 100 %."""
    if not models:
        return None
    ends = [100 * end for result in models.values() for end in result.interval]
    ticks = [tick for tick in nice_ticks(min(ends), max(ends)) if -1e-6 <= tick <= 100 + 1e-6]
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

    def place(share: float) -> float:
        return _place(100 * share, low, high)

    rows = {
        role: Whisker(place(result.interval[0]), place(result.score), place(result.interval[1]))
        for role, result in models.items()
    }
    return ScoreChart(rows, [Tick(_place(tick, low, high), f"{tick:.4g}") for tick in ticks], (ticks[0], ticks[-1]) == (0, 100))


def decision_chart(pair: RolePair | None, margin: MarginFacts | None) -> DecisionChart | None:
    """None where the two did not answer the same questions. The axis holds the interval, zero and the margin, and no more."""
    if not pair:
        return None
    ends = [0.0, *(100 * end for end in pair.interval), *([-margin.points] if margin else [])]
    ticks = nice_ticks(min(ends), max(ends))
    low, high = ticks[0], ticks[-1]

    def place(difference: float) -> float:
        return _place(100 * difference, low, high)

    return DecisionChart(
        Whisker(place(pair.interval[0]), place(pair.difference), place(pair.interval[1])),
        place(0.0),
        _place(-margin.points, low, high) if margin else None,
        [Tick(_place(tick, low, high), _points(tick)) for tick in ticks],
    )


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _points(tick: float) -> str:
    """ "−0.05", "+2", "0"."""
    return f"{tick:+.4g}".replace("-", "−") if abs(tick) > 1e-9 else points(0.0).removesuffix(".0")
