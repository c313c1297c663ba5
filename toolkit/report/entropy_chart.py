"""How evenly tokens spread over the experts while the model was trained: routing entropy, in bits, over the steps."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.recipe.roles import Role
from toolkit.report.charts import nice_ticks, points_of
from toolkit.report.facts import TrainingFacts
from toolkit.report.heat import Tick


@dataclass(frozen=True)
class EntropyLine:
    """`mean` over blocks and `least` of any block, as polylines."""

    role: Role
    mean: str
    least: str
    title: str


@dataclass(frozen=True)
class EntropyCurve:
    lines: list[EntropyLine]
    steps: list[Tick]
    bits: list[Tick]


def entropy_curve(trainings: Mapping[Role, TrainingFacts | None]) -> EntropyCurve | None:
    """From zero, since falling there is what must not happen. None where no training has logged it."""
    logged = {role: training.routing_entropy for role, training in trainings.items() if training and training.routing_entropy}
    if not logged:
        return None
    bits = nice_ticks(0, max(mean for points in logged.values() for _, mean, _ in points) or 1)
    last = max(training.last_step for training in trainings.values() if training) or 1
    lines = []
    for role, points in logged.items():
        places = [
            (round(100 * step / last, 2), *(round(100 - 100 * value / bits[-1], 2) for value in (mean, least)))
            for step, mean, least in points
        ]
        (_, first, _), (step, end, least) = points[0], points[-1]
        title = f"{role}: {first:.2f} bits at first, {end:.2f} at step {step:,}, {least:.2f} in the least block"
        lines.append(EntropyLine(role, points_of((x, y) for x, y, _ in places), points_of((x, y) for x, _, y in places), title))
    steps = [Tick(100 * step / last, f"{step:,.0f}") for step in nice_ticks(0, last) if step <= last]
    return EntropyCurve(lines, steps, [Tick(100 - 100 * value / bits[-1], f"{value:g}") for value in bits])
