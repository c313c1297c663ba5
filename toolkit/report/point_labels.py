"""Where the numbers of a drawing's points stand, so that none lies on another point or number."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 640, 220  # pixels of the drawing that labels are placed for: one that is narrower is more crowded
LETTER, LINE = 7, 12  # pixels of a digit, of a line
DOT = 5  # pixels from a point's centre to its edge
STEPS = 100  # places along a line
Place = tuple[float, float]  # percent from the left, from the top
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Label(NamedTuple):
    """Where a point's number stands, in pixels from it."""

    dx: int
    dy: int
    anchor: str


BESIDE = (
    Label(9, 4, "start"),
    Label(-9, 4, "end"),
    Label(9, -8, "start"),
    Label(-9, -8, "end"),
    Label(9, 16, "start"),
    Label(-9, 16, "end"),
    Label(0, -11, "middle"),
    Label(0, 19, "middle"),
)


def labels(places: Mapping[int, Place], avoided: Iterable[Place] = ()) -> dict[int, Label]:
    """For each point (place 0 has number 1) the first place beside it where its number lies on no other point, no other number
    and nothing of what is `avoided`."""
    pixels = {i: (x * WIDTH / 100, y * HEIGHT / 100) for i, (x, y) in places.items()}
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in pixels.values()]
    taken += [(x * WIDTH / 100, y * HEIGHT / 100, x * WIDTH / 100, y * HEIGHT / 100) for x, y in avoided]
    found = {}
    for i, (x, y) in pixels.items():
        boxes = [(label, _box(label, x, y, len(str(i + 1)) * LETTER)) for label in BESIDE]
        found[i], box = next((each for each in boxes if not any(_meet(each[1], other) for other in taken)), boxes[0])
        taken.append(box)
    return found


def along(corners: Sequence[Place]) -> list[Place]:
    """Places along a line, close to each other."""
    return [
        (start[0] + (end[0] - start[0]) * step / STEPS, start[1] + (end[1] - start[1]) * step / STEPS)
        for start, end in pairwise(corners)
        for step in range(STEPS + 1)
    ]


def _box(label: Label, x: float, y: float, width: float) -> Box:
    left = x + label.dx - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]
    return left, y + label.dy - LINE + 3, left + width, y + label.dy + 3


def _meet(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
