"""From numbers to geometry; the markup stands in report.html.j2.

Everything is in percent of the drawing's width and height (or in cells of the heat map), so that a drawing follows the
page's width while its text keeps its size. Shape legend: E experts of a block, L blocks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.report.formats import interval, percent


class Tick(NamedTuple):
    at: float  # percent
    label: str


@dataclass(frozen=True)
class Cell:
    """One expert: `strength` 0…1 is how dark it is drawn."""

    expert: int
    strength: float
    kept: bool
    title: str


@dataclass(frozen=True)
class HeatMap:
    """Rows are blocks, columns are experts; `legend` holds pairs of strength and the share it stands for."""

    rows: list[tuple[str, list[Cell]]]
    experts: int
    tokens: str
    row_height: int  # pixels
    widths: tuple[int, int]  # pixels: least and most
    ticks: list[Tick]
    legend: list[tuple[float, str]]
    chosen: bool  # whether any expert was chosen yet


def heat_map(report: dict[str, Any]) -> HeatMap | None:
    """Each expert's share of the routing choices, by the tokens that decided; None where nothing was watched."""
    blocks = {name: block for name, block in report["blocks"].items() if block["share"]}
    if not blocks:
        return None
    tokens = (report["pruning"] or {}).get("tokens", "all")
    shares_LE = [block["share"].get(tokens) or [0.0] * block["experts"] for block in blocks.values()]
    most = max(max(row) for row in shares_LE) or 1.0
    rows = []
    for label, block, shares in zip(_labels(list(blocks)), blocks.values(), shares_LE, strict=True):
        kept = set(block["kept"] or ())
        rows.append((label, [_cell(label, e, share, most, e in kept) for e, share in enumerate(shares)]))
    experts = max(map(len, shares_LE))
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64) if experts / step <= 16 or step == 64)
    return HeatMap(
        rows=rows,
        experts=experts,
        tokens=tokens,
        row_height=max(10, min(32, 480 // len(rows))),
        widths=(experts * (9 if experts > 32 else 22), experts * 64),
        ticks=[Tick(100 * (e + 0.5) / experts, str(e)) for e in range(0, experts, every)],
        legend=[(strength, percent(strength**2 * most)) for strength in (0.0, 0.25, 0.5, 0.75, 1.0)],
        chosen=any(block["kept"] for block in blocks.values()),
    )


def _cell(block: str, expert: int, share: float, most: float, kept: bool) -> Cell:
    use = percent(share, 2) if share else "never chosen"
    # The square root keeps apart the many small shares of a model with many experts
    return Cell(expert, round(math.sqrt(share / most), 3), kept, f"block {block}, expert {expert}: {use}{', kept' * kept}")


def _labels(names: list[str]) -> list[str]:
    """What tells the blocks apart: "model.layers.3.mlp" among its like is "3"."""
    parts = [name.split(".") for name in names]
    if len(names) == 1 or len({len(p) for p in parts}) > 1:
        return names
    varying = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return [".".join(p[i] for i in varying) for p in parts]


@dataclass(frozen=True)
class LossCurve:
    """`train` is the points of a polyline, one per unbroken stretch; `dev` is the dots of the other."""

    train: list[str]
    dev_line: str
    dev: list[tuple[float, float, str]]  # percent, percent, title
    steps: list[Tick]
    losses: list[Tick]


def loss_curve(training: dict[str, Any] | None) -> LossCurve | None:
    """None where no finite loss was logged."""
    if not training:
        return None
    known = [(step, loss) for step, loss in training["loss"] + training["dev_loss"] if loss is not None]
    if not known:
        return None
    losses = nice_ticks(min(loss for _, loss in known), max(loss for _, loss in known))
    last = max(step for step, _ in known) or 1
    low, high = losses[0], losses[-1]

    def place(step: float, loss: float) -> tuple[float, float]:
        return round(100 * step / last, 2), round(100 * (high - loss) / (high - low), 2)

    stretches: list[list[str]] = [[]]
    for step, loss in training["loss"]:
        if loss is None:
            stretches.append([])
        else:
            stretches[-1].append("{},{}".format(*place(step, loss)))
    dev = [(*place(step, loss), f"step {step:,}: dev loss {loss:.4f}") for step, loss in training["dev_loss"] if loss is not None]
    digits = max(0, -math.floor(math.log10(losses[1] - losses[0])))
    return LossCurve(
        train=[" ".join(stretch) for stretch in stretches if stretch],
        dev_line=" ".join(f"{x},{y}" for x, y, _ in dev),
        dev=dev,
        steps=[Tick(100 * step / last, f"{step:,.0f}") for step in nice_ticks(0, last) if step <= last],
        losses=[Tick(100 * (high - loss) / (high - low), f"{loss:.{digits}f}") for loss in losses],
    )


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
    """Accuracy over the number of kept experts; `original` is the top and the height of its interval, in percent."""

    lines: list[KeepLine]
    keeps: list[Tick]
    original: tuple[float, float]


def keep_curve(sweep: dict[str, Any] | None) -> KeepCurve | None:
    """None where nothing was swept. Every line ends at the original, on the right."""
    if not sweep:
        return None
    original, *cells = sweep["rows"]
    keeps = sorted({row["keep"] for row in sweep["rows"]})
    few, all_ = keeps[0], keeps[-1]

    def place(keep: int, score: float) -> tuple[float, float]:
        return round(100 * (keep - few) / (all_ - few or 1), 2), round(100 * (1 - score), 2)

    lines = []
    for style, label in enumerate(dict.fromkeys(row["label"] for row in cells)):
        own = [row for row in cells if row["label"] == label]
        scores: dict[int, list[float]] = {}
        for row in [*own, original]:
            scores.setdefault(row["keep"], []).append(row["task"]["score"])
        order = sorted(scores)
        worst, best = ([place(keep, end(scores[keep])) for keep in order] for end in (min, max))
        lines.append(
            KeepLine(
                label=label,
                style=style,
                points=_points(place(keep, sum(scores[keep]) / len(scores[keep])) for keep in order),
                band=_points([*worst, *reversed(best)]) if worst != best else "",
                dots=[(*place(row["keep"], row["task"]["score"]), _dot_title(row)) for row in own],
            )
        )
    low, high = original["task"]["interval"]
    ticks = [Tick(place(keep, 0)[0], str(keep)) for keep in keeps]
    return KeepCurve(lines, ticks, (round(100 * (1 - high), 2), round(100 * (high - low), 2)))


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _dot_title(row: dict[str, Any]) -> str:
    found = row["task"]
    seed = f", seed {row['seed']}" if row["label"].startswith("random") else ""
    return f"{row['label']}, keep {row['keep']}{seed}: {percent(found['score'])}, 95 % interval {interval(found)}"


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]
