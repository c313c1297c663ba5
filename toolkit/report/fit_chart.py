"""Drawings of a fit: accuracy (or loss) over size, with the limit and the frontier; and predicted against measured loss.

Places are in percent of a drawing's width and height, from the top left; labels are pixels away from their points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.report.charts import nice_ticks, points_of
from toolkit.report.fit_facts import SIZE_NAMES, FitAnswers, FitFacts, FitShapeFacts, SizeField, delta_text
from toolkit.report.fit_frontier import compares_accuracy
from toolkit.report.heat import Tick
from toolkit.report.point_labels import Label, along, labels
from toolkit.runtime.formatting import interval, percent

LIMIT_OF: dict[SizeField, str] = {"bytes": "bytes", "parameters": "parameters", "active_parameters": "active"}
UNITS = {"bytes": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")), "parameters": ((10**9, "B"), (10**6, "M"), (10**3, "k"))}


@dataclass(frozen=True)
class FitPoint:
    """A measured shape; `number`: its row in the table. `reach`: top and bottom of its interval; `trial`: its height after it."""

    number: int
    x: float
    y: float
    chosen: bool
    title: str
    label: Label
    reach: tuple[float, float] | None = None
    trial: float | None = None


@dataclass(frozen=True)
class SizeChart:
    """`original`: top and height of its interval's band; of a loss, the height is 0. `limit`: across. `undrawn`: numbers of the
    measured shapes that have no place. `height` says what stands over `size`."""

    points: list[FitPoint]
    frontier: str
    sizes: list[Tick]
    values: list[Tick]
    limit: float | None
    original: tuple[float, float] | None
    undrawn: list[int]
    height: str
    size: str


@dataclass(frozen=True)
class PredictionChart:
    """Both axes, `ticks` across and `heights`, have the same scale."""

    points: list[FitPoint]
    ticks: list[Tick]
    heights: list[Tick]
    diagonal: str
    undrawn: list[int]


def size_chart(fit: FitFacts) -> SizeChart | None:
    """None where no measured shape has a value that can be drawn."""
    by_accuracy = compares_accuracy(fit.shapes)
    values = {i: _value(shape.measured, by_accuracy) for i, shape in enumerate(fit.shapes) if shape.measured}
    drawn = {i: value for i, value in values.items() if value is not None}
    if not drawn:
        return None
    limit, original = fit.limits.get(LIMIT_OF[fit.size_by]), _band(fit.original.measured, by_accuracy)
    across = _Scale([*(getattr(fit.shapes[i], fit.size_by) for i in drawn), *([limit] if limit else [])], room=0.06)
    trials = {i: _value(fit.shapes[i].trial, by_accuracy) for i in drawn}
    reaches = {i: _band(fit.shapes[i].measured, by_accuracy) for i in drawn} if by_accuracy else {}
    heights = [*drawn.values(), *(value for value in trials.values() if value is not None), *(original or ())]
    heights += [end for reach in reaches.values() for end in reach or ()]
    ticks = nice_ticks(max(0.0, min(heights)) if by_accuracy else min(heights), max(heights))
    down = _Scale([ticks[0], ticks[-1]], falling=True)
    places = {i: (across(getattr(fit.shapes[i], fit.size_by)), down(value)) for i, value in drawn.items()}
    line = [places[i] for i in fit.frontier if i in places]
    tried = [(places[i][0], down(trial)) for i, trial in trials.items() if trial is not None]
    beside = labels(places, [*along(line), *along([(across(limit), 0), (across(limit), 100)] if limit else []), *tried])
    points = []
    for i, (x, y) in places.items():
        trial, reach = trials[i], reaches.get(i)
        points.append(
            FitPoint(
                number=i + 1, x=x, y=y, chosen=i == fit.chosen, title=_title(fit, i), label=beside[i],
                reach=(down(reach[1]), down(reach[0])) if reach else None, trial=None if trial is None else down(trial),
            )
        )  # fmt: skip
    return SizeChart(
        points=points,
        frontier=points_of(line),
        sizes=size_ticks(fit.size_by, across),
        values=[Tick(down(tick), percent(tick, 0) if by_accuracy else f"{tick:g}") for tick in ticks],
        limit=across(limit) if limit else None,
        original=(down(original[1]), round(down(original[0]) - down(original[1]), 2)) if original else None,
        undrawn=[i + 1 for i in values if i not in drawn],
        height="dev accuracy" if by_accuracy else "dev loss, above the original's",
        size=SIZE_NAMES[fit.size_by],
    )


def prediction_chart(fit: FitFacts) -> PredictionChart | None:
    """None where fewer than two shapes have a predicted and a measured loss."""
    measured = {i: shape for i, shape in enumerate(fit.shapes) if shape.measured}
    pairs = {i: pair for i, shape in measured.items() if (pair := _deltas(shape))}
    if len(pairs) < 2:
        return None
    ticks = nice_ticks(min(map(min, pairs.values())), max(map(max, pairs.values())))
    across, down = _Scale([ticks[0], ticks[-1]]), _Scale([ticks[0], ticks[-1]], falling=True)
    places = {i: (across(predicted), down(delta)) for i, (predicted, delta) in pairs.items()}
    beside = labels(places, along([(0, 100), (100, 0)]))
    return PredictionChart(
        points=[FitPoint(i + 1, x, y, i == fit.chosen, _title(fit, i), beside[i]) for i, (x, y) in places.items()],
        ticks=[Tick(across(tick), f"{tick:g}") for tick in ticks],
        heights=[Tick(down(tick), f"{tick:g}") for tick in ticks],
        diagonal=points_of([(0, 100), (100, 0)]),
        undrawn=[i + 1 for i in measured if i not in pairs],
    )


def _deltas(shape: FitShapeFacts) -> tuple[float, float] | None:
    if shape.predicted is None or not shape.measured or shape.measured.delta is None:
        return None
    return shape.predicted, shape.measured.delta


def _value(answers: FitAnswers | None, by_accuracy: bool) -> float | None:
    if not answers:
        return None
    return answers.score if by_accuracy else answers.delta


def _band(answers: FitAnswers | None, by_accuracy: bool) -> tuple[float, float] | None:
    """The interval of an accuracy; of losses, where the original's stands."""
    if not answers or not by_accuracy:
        return (0.0, 0.0) if answers and answers.delta is not None else None
    return answers.interval


class _Scale:
    """From numbers to percent; `room`: left free on both sides, a part of the range."""

    def __init__(self, numbers: Sequence[float], room: float = 0.0, falling: bool = False) -> None:
        low, high = min(numbers), max(numbers)
        free = (high - low or abs(high) or 1.0) * room
        self.low, self.high, self.falling = low - free, high + free, falling

    def __call__(self, number: float) -> float:
        part = 100 * (number - self.low) / (self.high - self.low or 1.0)
        return round(100 - part if self.falling else part, 2)


def size_ticks(by: SizeField, across: _Scale) -> list[Tick]:
    """Round numbers of the largest unit that the sizes fill."""
    units = UNITS["bytes" if by == "bytes" else "parameters"]
    unit, name = next(((size, name) for size, name in units if across.high >= size), (1, ""))
    ticks = nice_ticks(across.low / unit, across.high / unit)
    return [Tick(across(tick * unit), f"{tick:,g} {name}".strip()) for tick in ticks if 0 <= across(tick * unit) <= 100]


def _title(fit: FitFacts, place: int) -> str:
    """ "1, chosen: 4 layers, …, 3.4 MiB: dev accuracy 74.0 %, 95 % interval 70.0–77.7 %, loss +0.2800, predicted +0.2200"."""
    shape, chosen = fit.shapes[place], ", chosen" * (place == fit.chosen)
    return f"{place + 1}{chosen}: {shape.text}, {shape.size_text(fit.size_by)}: {', '.join(_parts(fit, shape))}"


def _parts(fit: FitFacts, shape: FitShapeFacts) -> Iterable[str]:
    measured = shape.measured
    if measured and measured.score is not None:
        yield f"dev accuracy {percent(measured.score)}"
    if measured and measured.interval:
        yield f"95 % interval {interval(measured.interval)}"
    yield f"loss {delta_text(measured)}"
    yield f"predicted {fit.predicted_text(shape)}"
    if shape.trial and shape.trial.score is not None:
        yield f"after its trial {percent(shape.trial.score)}"
