"""Dots with whiskers on a zoomed axis: the decisive difference, and the score of every model.

Lengths from zero would need the whole axis, and hide what is decided at its end: 99.8 % against 98.4 %. A dot needs only the part
where the numbers are. Places are in percent of the drawing's width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.recipe.roles import Role
from toolkit.report.facts import ModelResult
from toolkit.report.heat import Tick
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import plain_points

ROOM = 0.08  # of what is drawn, on either side


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, in the data's own unit."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], least: float = 0.02) -> "Axis":
        """With room on either side, and at least `least` wide."""
        low, high = min(values), max(values)
        room = max((high - low) * ROOM, (least - (high - low)) / 2)
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, write: Callable[[float], str]) -> list[Tick]:
        """At least four round numbers on the scale: multiples of 1, 2 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        for step in (power * part for part in (2, 1, 0.5, 0.2, 0.1)):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first >= 3:
                break
        values = (round(step * number, 10) + 0.0 for number in range(first, last + 1))
        return [Tick(self.place(value), write(value)) for value in values]


@dataclass(frozen=True)
class Decision:
    """A difference with its interval, against zero and against the margin (None: none was named)."""

    low: float
    middle: float
    high: float
    zero: float
    margin: float | None
    ticks: list[Tick]


def decision(pair: PairedComparison[Any] | None, margin: float | None) -> Decision | None:
    """`margin` in percentage points. None where the two models were not compared."""
    if not pair:
        return None
    limits = [] if margin is None else [-margin / 100]
    axis = Axis.around([*pair.interval, 0.0, *limits])
    low, high = map(axis.place, pair.interval)
    ticks = axis.ticks(lambda difference: plain_points(100 * difference).replace("-", "−") if difference else "0")
    return Decision(low, axis.place(pair.difference), high, axis.place(0.0), axis.place(limits[0]) if limits else None, ticks)


@dataclass(frozen=True)
class ScoreDots:
    """Per evaluated model the low, middle and high of its score."""

    rows: dict[Role, tuple[float, float, float]]
    ticks: list[Tick]


def score_dots(models: Mapping[Role, ModelResult]) -> ScoreDots | None:
    """None where no model was evaluated. The axis ends at 0 and 100 % at the latest."""
    if not models:
        return None
    axis = Axis.around([end for result in models.values() for end in (*result.interval, result.score)])
    axis = Axis(max(axis.low, 0.0), min(axis.high, 1.0))
    rows = {}
    for role, result in models.items():
        low, middle, high = map(axis.place, (result.interval[0], result.score, result.interval[1]))
        rows[role] = low, middle, high
    return ScoreDots(rows, axis.ticks(lambda score: f"{plain_points(100 * score)} %"))
