"""Drawings of cuts of width and of layers: what the kept channels of each expert hold, how many experts keep the same channel,
and which layers stay.

Shape legend: E experts of a block, K kept experts of a block, L layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.report.cut_facts import LayersFacts, WidthFacts
from toolkit.report.facts import BlockFacts
from toolkit.report.heat import PRUNED, ExpertMap, Tick, expert_map, labels_of, picture, script_json


@dataclass(frozen=True)
class WidthMap(ExpertMap):
    """Strength is the root of lost / most lost: what of an expert's energy went with its channels."""

    picture: str  # data: URL
    numbers: str  # JSON for the script: lost energy in hundredths of a percent, -1 unknown, -2 for an expert that is gone
    hue: str
    least: tuple[float, str]  # the smallest share of energy that an expert keeps, and whose
    mean: float


def width_map(width: WidthFacts, blocks: Mapping[str, BlockFacts]) -> WidthMap | None:
    """None where nothing is known of the channels' energy. `blocks`: which experts are kept."""
    names = [name for name, channels in width.blocks.items() if channels.energy is not None and name in blocks]
    held = {name: dict(zip(blocks[name].kept or (), width.blocks[name].energy or (), strict=True)) for name in names}
    known = [(energy, name, expert) for name, of in held.items() for expert, energy in of.items() if energy is not None]
    if not known:
        return None
    labels, experts = labels_of(names), max(blocks[name].experts for name in names)
    lost = [[_lost(of, expert) for expert in range(experts)] for of in held.values()]
    most = max(max(row) for row in lost) or 1.0
    hue, pixels = bytes(PRUNED), [[bytes(PRUNED) + bytes([_strength(part / most)]) for part in row] for row in lost]
    least, name, expert = min(known)
    kept = [set(blocks[name].kept or ()) for name in names]
    numbers = {"rows": labels, "lost": [[round(1e4 * part) if part >= 0 else part for part in row] for row in lost]}
    return WidthMap(
        **vars(expert_map(labels, experts, kept, most)),
        picture=picture(pixels),
        numbers=script_json(numbers),
        hue=f"#{hue.hex()}",
        least=(least, f"expert {expert} of block {labels[names.index(name)]}"),
        mean=sum(energy for energy, _, _ in known) / len(known),
    )


def _lost(held: Mapping[int, Any], expert: int) -> float:
    if expert not in held:
        return -2
    return -1 if held[expert] is None else 1 - held[expert]


def _strength(part: float) -> int:
    return round(255 * math.sqrt(max(0.0, part)))


@dataclass(frozen=True)
class ChannelsInCommon:
    """How many channels are kept by 0, 1, … K of the kept experts, all blocks together; `chance`: what experts that know nothing
    of each other would have in common."""

    experts: int  # K
    bars: str  # path in a box of K + 1 by 1
    chance: str  # polyline in the same box
    by_all: tuple[float, float]  # share of the channels, and by chance
    by_none: tuple[float, float]


def channels_in_common(width: WidthFacts) -> ChannelsInCommon | None:
    """None where no channels are known, or one expert stays."""
    counts = [block.kept_by for block in width.blocks.values()]
    if not counts or len(counts[0]) < 3 or not width.width:
        return None
    total, experts = sum(map(sum, counts)), len(counts[0]) - 1
    shares = [sum(column) / total for column in zip(*counts, strict=True)]
    channels = sum(counts[0])
    rate = sum(n * count for n, count in enumerate(counts[0])) / (experts * channels)  # of the channels that an expert keeps
    chance = [math.comb(experts, n) * rate**n * (1 - rate) ** (experts - n) for n in range(experts + 1)]
    most = max(*shares, *chance)
    return ChannelsInCommon(
        experts=experts,
        bars="".join(f"M{n + 0.1:g} 1v-{share / most:.4f}h.8V1z" for n, share in enumerate(shares) if share),
        chance=" ".join(f"{n + 0.5:g},{1 - share / most:.4f}" for n, share in enumerate(chance)),
        by_all=(shares[-1], chance[-1]),
        by_none=(shares[0], chance[0]),
    )


@dataclass(frozen=True)
class LayerCell:
    """One layer of the strip; `height` of its score, of 1."""

    layer: int
    kept: bool
    height: float
    title: str


@dataclass(frozen=True)
class LayerStrip:
    cells: list[LayerCell]
    scored: bool
    ticks: list[Tick]


def layer_strip(layers: LayersFacts) -> LayerStrip:
    """Every layer of the original, with what is lost without it. A layer without which the loss falls has no bar."""
    kept, place = set(layers.kept), {removed.layer: n for n, removed in enumerate(layers.removed, start=1)}
    scores: list[int | float | None] = layers.scores or [None] * layers.layers
    most = max((score for score in scores if score is not None), default=0.0)
    cells = []
    for layer, score in enumerate(scores):
        state = "kept" if layer in kept else f"dropped, number {place[layer]}" if layer in place else "dropped"
        title = f"layer {layer}: {state}" + (f", score {score:.4g}" if score is not None else "")
        cells.append(LayerCell(layer, layer in kept, round(max(0.0, score or 0.0) / most, 4) if most > 0 else 0.0, title))
    every = next(step for step in (1, 2, 4, 8, 16) if layers.layers / step <= 24 or step == 16)
    ticks = [Tick(100 * (n + 0.5) / layers.layers, str(n)) for n in range(0, layers.layers, every)]
    return LayerStrip(cells, any(score is not None for score in scores), ticks)


def layer_marks(kept: list[int]) -> str:
    """A path of a cell for each of these layers, in a box that is as wide as there are layers."""
    return "".join(f"M{layer + 0.06:g} 0h.88v1h-.88z" for layer in kept)
