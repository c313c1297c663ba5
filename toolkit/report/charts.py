"""From numbers to geometry: paired differences, agreement of criteria, training losses, accuracy over kept experts.

Everything is in percent of a drawing's width and height, so that a drawing follows the page's width while its text keeps its
size. The markup stands in the templates.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.recipe.roles import Role
from toolkit.report.cut_facts import CriteriaAgreement
from toolkit.report.facts import TrainingFacts
from toolkit.report.heat import Tick, labels_of
from toolkit.report.measurements import Number, SweepRow, SweepTable
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import interval, percent

SPREAD = 30  # losses that reach over more than this factor are drawn on a logarithmic scale


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals on one scale: `rows` holds low, middle and high of each pair."""

    rows: list[tuple[float, float, float]]
    zero: float


def forest(pairs: Sequence[PairedComparison[Any]]) -> Forest | None:
    """None where nothing was compared."""
    if not pairs:
        return None
    low = min(0.0, *(pair.interval[0] for pair in pairs))
    high = max(0.0, *(pair.interval[1] for pair in pairs))
    room = (high - low) / 20 or 0.01

    def place(difference: float) -> float:
        return round(100 * (difference - low + room) / (high - low + 2 * room), 2)

    rows = [(place(pair.interval[0]), place(pair.difference), place(pair.interval[1])) for pair in pairs]
    return Forest(rows, place(0.0))


class LeastAgreement(NamedTuple):
    """The block in which a criterion shares the fewest experts with the plan."""

    share: float
    block: str


@dataclass(frozen=True)
class Agreement:
    """Per criterion a strip of one bar for each block, `height` is 1."""

    blocks: list[str]  # labels
    strips: dict[str, str]  # criterion -> path
    least: dict[str, LeastAgreement]


def agreement(criteria: CriteriaAgreement | None) -> Agreement | None:
    """None where no criterion was asked."""
    if not criteria:
        return None
    by_criterion = criteria.agreement
    names = list(next(iter(by_criterion.values())))
    labels = labels_of(names)
    strips = {
        criterion: "".join(f"M{i + 0.1:g} 1v-{share:g}h.8V1z" for i, share in enumerate(shares.values()) if share)
        for criterion, shares in by_criterion.items()
    }
    least = {}
    for criterion, shares in by_criterion.items():
        name = min(shares, key=lambda block: shares[block])
        least[criterion] = LeastAgreement(shares[name], labels[names.index(name)])
    return Agreement(labels, strips, least)


@dataclass(frozen=True)
class LossLine:
    """One training: `train` holds the points of a polyline for every unbroken stretch; `dev` is the dots of the other."""

    role: str
    train: list[str]
    dev_line: str
    dev: list[tuple[float, float, str]]  # percent, percent, title


@dataclass(frozen=True)
class LossCurve:
    lines: list[LossLine]
    steps: list[Tick]
    losses: list[Tick]
    logarithmic: bool


def loss_curve(trainings: Mapping[Role, TrainingFacts | None]) -> LossCurve | None:
    """By role (recovered, control); None where no finite loss was logged."""
    logged = {role: training for role, training in trainings.items() if training and _finite(training)}
    if not logged:
        return None
    points = [point for training in logged.values() for point in _finite(training)]
    least, most = min(loss for _, loss in points), max(loss for _, loss in points)
    last = max(step for step, _ in points) or 1
    logarithmic = least > 0 and most / least > SPREAD
    losses = log_ticks(least, most) if logarithmic else nice_ticks(least, most)
    scale = math.log if logarithmic else float
    low, high = scale(losses[0]), scale(losses[-1])

    def down(loss: float) -> float:
        return 100 * (high - scale(loss)) / (high - low)

    def place(step: float, loss: float) -> tuple[float, float]:
        return round(100 * step / last, 2), round(down(loss), 2)

    lines = []
    for role, training in logged.items():
        stretches: list[list[tuple[float, float]]] = [[]]
        for step, loss in training.loss:
            if loss is None:
                stretches.append([])
            else:
                stretches[-1].append(place(step, loss))
        dev = [
            (*place(step, loss), f"{role}, step {step:,}: dev loss {loss:.4f}")
            for step, loss in training.dev_loss
            if loss is not None
        ]
        train = [points_of(stretch) for stretch in stretches if stretch]
        lines.append(LossLine(role, train, points_of((x, y) for x, y, _ in dev), dev))
    return LossCurve(
        lines=lines,
        steps=[Tick(100 * step / last, f"{step:,.0f}") for step in nice_ticks(0, last) if step <= last],
        losses=[Tick(down(loss), f"{loss:.4g}") for loss in losses],
        logarithmic=logarithmic,
    )


def _finite(training: TrainingFacts) -> list[tuple[Number, Number]]:
    return [(step, loss) for step, loss in training.loss + training.dev_loss if loss is not None]


@dataclass(frozen=True)
class KeepLine:
    """One criterion: `points` is a polyline (the mean, where there are several seeds), `band` a polygon from worst to best."""

    label: str
    style: int  # which of the page's line styles
    points: str
    band: str
    dots: list[tuple[float, float, str]]  # percent, percent, title


@dataclass(frozen=True)
class KeepCurve:
    """Accuracy over the number of kept experts, or where widths and layers are swept over the share of the parameters;
    `original` is the top and the height of its interval, in percent."""

    lines: list[KeepLine]
    keeps: list[Tick]
    original: tuple[float, float]
    axis: str


def keep_curve(sweep: SweepTable | None) -> KeepCurve | None:
    """None where nothing was swept. Every line ends at the original, on the right."""
    if not sweep:
        return None
    original, *cells = sweep.rows
    amounts = sorted({row.amount for row in sweep.rows})
    few, all_ = amounts[0], amounts[-1]

    def place(amount: float, score: float) -> tuple[float, float]:
        return round(100 * (amount - few) / (all_ - few or 1), 2), round(100 * (1 - score), 2)

    lines = []
    for style, label in enumerate(dict.fromkeys(row.label for row in cells)):
        own = [row for row in cells if row.label == label]
        scores: dict[int, list[float]] = {}
        for row in [*own, original]:
            scores.setdefault(row.amount, []).append(row.task.score)
        order = sorted(scores)
        worst, best = ([place(amount, end(scores[amount])) for amount in order] for end in (min, max))
        lines.append(
            KeepLine(
                label=label,
                style=style,
                points=points_of(place(amount, sum(scores[amount]) / len(scores[amount])) for amount in order),
                band=points_of([*worst, *reversed(best)]) if worst != best else "",
                dots=[(*place(row.amount, row.task.score), _dot_title(row)) for row in own],
            )
        )
    low, high = original.task.interval
    band = round(100 * (1 - high), 2), round(100 * (high - low), 2)
    if not sweep.by_size:
        ticks = [Tick(place(amount, 0)[0], str(amount)) for amount in amounts]
        return KeepCurve(lines, ticks, band, "experts kept per block")
    shares = [share for share in nice_ticks(few / all_, 1.0) if few / all_ <= share <= 1]
    ticks = [Tick(place(share * all_, 0)[0], percent(share, 0)) for share in shares]
    return KeepCurve(lines, ticks, band, f"{'bytes' if sweep.by_bytes else 'parameters'}, of the original's")


def _dot_title(row: SweepRow) -> str:
    seed = f", seed {row.seed}" if row.drawn else ""
    return f"{row.label}, {row.shape}{seed}: {percent(row.task.score)}, 95 % interval {interval(row.task.interval)}"


def points_of(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high]."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**i for i in range(first, last + 1)]
