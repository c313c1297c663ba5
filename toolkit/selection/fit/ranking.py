"""Which shapes are measured, which of them are tried, and which one is chosen."""

import math
from collections.abc import Sequence

from toolkit.cuts.fit_result import Answered, ShapeRecord

DENSE = "dense"
TRIED = 3  # of the shapes that were measured, the best of which are fine-tuned for some steps


def to_measure(shapes: Sequence[ShapeRecord], number: int) -> list[int]:
    """The places of the shapes to measure: the `number` with the smallest predicted delta, and those that cut one thing only.

    Ties: the larger shape first. Of shapes in the dense form, whose merging no delta tells of, the best is always among them.
    """
    open_ = [place for place, shape in enumerate(shapes) if shape.refused is None]
    ranked = sorted(open_, key=lambda place: (_or_infinite(shapes[place].predicted), -shapes[place].parameters, place))
    moe = [place for place in ranked if shapes[place].form != DENSE]
    dense = [place for place in ranked if shapes[place].form == DENSE]
    singles = [place for place in ranked if shapes[place].single_cut]
    return list(dict.fromkeys([*moe[:number], *singles, *dense[:1]]))


def best_measured(shapes: Sequence[ShapeRecord], metric: str, number: int = 1) -> list[int]:
    """The places of the best shapes by what was measured, the best first. Ties: the one with fewer bytes."""
    measured = [place for place, shape in enumerate(shapes) if shape.measured and shape.refused is None]
    return sorted(measured, key=lambda place: (badness(shapes[place].measured, metric), shapes[place].bytes))[:number]


def paired_choice(shapes: Sequence[ShapeRecord], tried: Sequence[int]) -> int:
    """Of the shapes that were fine-tuned for some steps, the one with most right answers. Ties: the smaller loss."""
    return min(tried, key=lambda place: (badness(shapes[place].trial, "accuracy"), badness(shapes[place].trial, "dev_loss")))


def badness(answered: Answered | None, metric: str) -> float:
    """What is to be small."""
    if answered is None:
        return math.inf
    if metric == "accuracy" and answered.score is not None:
        return -answered.score
    return _or_infinite(answered.kl if metric == "fidelity" else answered.loss)


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
