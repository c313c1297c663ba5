"""What each kind of cut costs alone, and what that says of cutting several: the sum (Puzzle's assumption, arXiv 2411.19146)."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.cuts.fit_result import Axis, FitShape


@dataclass(frozen=True)
class Deltas:
    """By the key of a shape ("layers"), by its value: how much greater the loss is than the original's with this cut alone. A
    loss that is not finite is infinite. A value that was not measured lies on the line between its neighbours."""

    axes: Mapping[str, Mapping[int, float]]

    @classmethod
    def of(cls, axes: list[Axis]) -> "Deltas":
        found: dict[str, dict[int, float]] = {}
        for axis in axes:
            points = {point.value: math.inf if point.delta is None else point.delta for point in axis.points}
            found[axis.cut] = points | {axis.original: 0.0}
        return cls(found)

    def predicted(self, shape: FitShape) -> float:
        """The sum over the shape's counts, in nats per token; infinite where one of them is."""
        counts = shape._asdict()
        return sum(_between(points, counts[key]) for key, points in self.axes.items())


def _between(points: Mapping[int, float], value: int) -> float:
    if value in points:
        return points[value]
    known = sorted(points)
    place = bisect_left(known, value)
    if place in (0, len(known)):
        return points[known[min(place, len(known) - 1)]]
    low, high = known[place - 1], known[place]
    share = (value - low) / (high - low)
    return (1 - share) * points[low] + share * points[high]
