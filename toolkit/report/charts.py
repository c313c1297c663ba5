"""From numbers to geometry, in percent of a drawing's width: the paired differences, and how criteria agree."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.report.heat import labels_of


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals on one scale: `rows` holds low, middle and high of each pair."""

    rows: list[tuple[float, float, float]]
    zero: float


def forest(pairs: list[dict[str, Any]]) -> Forest | None:
    """None where nothing was compared."""
    if not pairs:
        return None
    low = min(0.0, *(found["interval"][0] for found in pairs))
    high = max(0.0, *(found["interval"][1] for found in pairs))
    room = (high - low) / 20 or 0.01

    def place(difference: float) -> float:
        return round(100 * (difference - low + room) / (high - low + 2 * room), 2)

    rows = [tuple(place(at) for at in (p["interval"][0], p["difference"], p["interval"][1])) for p in pairs]
    return Forest(rows, place(0.0))  # type: ignore[arg-type]


class Least(NamedTuple):
    share: float
    block: str


@dataclass(frozen=True)
class Agreement:
    """Per criterion a strip of one bar for each block, `height` is 1."""

    blocks: list[str]  # labels
    strips: dict[str, str]  # criterion -> path
    least: dict[str, Least]


def agreement(criteria: dict[str, Any] | None) -> Agreement | None:
    if not criteria:
        return None
    found = criteria["agreement"]
    names = list(next(iter(found.values())))
    labels = labels_of(names)
    strips = {
        criterion: "".join(f"M{i + 0.1:g} 1v-{share:g}h.8V1z" for i, share in enumerate(shares.values()) if share)
        for criterion, shares in found.items()
    }
    least = {}
    for criterion, shares in found.items():
        name = min(shares, key=lambda block: shares[block])
        least[criterion] = Least(shares[name], labels[names.index(name)])
    return Agreement(labels, strips, least)
