"""Which stock shapes there are under limits: layers × experts × width × active experts, at most a few hundred.

For every number of layers, experts and active experts, the greatest width that meets the limits; and of these shapes those that
no other contains. Sizes come from a function, so that nothing here knows how models are built.

A shape contains another where it has as many layers, experts, channels and active experts, or more: it can then do whatever the
other can, and is not larger than allowed. Within the limits only shapes that no other contains are worth looking at.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import FitSize
from toolkit.runtime.errors import PollardError
from toolkit.selection.fit.limits import Limit, exceeded

MOST_VALUES = 16  # of one axis: of deeper models, and of those with more experts, evenly spaced ones
SizeOf = Callable[[FitShape], FitSize]


@dataclass(frozen=True)
class AxisValues:
    """What each count may be, ascending; the last is the original's."""

    layers: Sequence[int]
    experts: Sequence[int]
    width: Sequence[int]
    experts_per_token: Sequence[int]

    @property
    def original(self) -> FitShape:
        return FitShape(self.layers[-1], self.experts[-1], self.width[-1], self.experts_per_token[-1])

    def smallest(self, form: Literal["moe", "dense"] = "moe") -> FitShape:
        experts = self.experts[0]
        return FitShape(self.layers[0], experts, self.width[0], min(self.experts_per_token[0], experts), form)


class Candidate(NamedTuple):
    """A shape and its size. `single_cut`: what it cuts where it cuts one thing only, and is the largest that does. `refused`: why
    it is not looked at."""

    shape: FitShape
    size: FitSize
    single_cut: Literal["experts", "width", "layers", "dense"] | None = None
    refused: str | None = None


def axis_values(most: int, step: int = 1, least: int | None = None) -> list[int]:
    """Multiples of `step` from `least` (unless given, `step`) to `most`, evenly spaced where there are more than MOST_VALUES."""
    values = [value for value in range(least or step, most + 1) if value % step == 0 or value == most]
    if len(values) <= MOST_VALUES:
        return values
    places = (round(n * (len(values) - 1) / (MOST_VALUES - 1)) for n in range(MOST_VALUES))
    return [values[place] for place in dict.fromkeys(places)]


def shapes_within(
    values: AxisValues, size_of: SizeOf, limits: Sequence[Limit], form: Literal["moe", "dense"] = "moe"
) -> list[Candidate]:
    """Those that meet all limits and that no other contains, in the order of their counts, the original's first.

    For every cut the largest shape that cuts nothing else is among them, marked. Sizes must grow with every count.
    """
    found: dict[FitShape, FitSize] = {}
    for shape in shapes_of_any_width(values, form):
        if within := widest(values, shape, size_of, limits):
            found[within.shape] = within.size
    kept = [shape for shape in found if not any(other != shape and contains(other, shape) for other in found)]
    singles = _single_cuts(found, values.original) if form == "moe" else {}
    shapes = sorted({*kept, *singles}, reverse=True)
    return [Candidate(shape, found[shape], singles.get(shape)) for shape in shapes]


def shapes_of_any_width(values: AxisValues, form: Literal["moe", "dense"]) -> Iterator[FitShape]:
    """Every number of layers, experts and active experts, with no channels yet."""
    for layers, experts, active in product(values.layers, values.experts, values.experts_per_token):
        if active <= experts or active == values.experts_per_token[0]:
            yield FitShape(layers, experts, 0, min(active, experts), form)


def contains(shape: FitShape, other: FitShape) -> bool:
    """Whether every count of `shape` is as great as the other's, or greater."""
    return shape.form == other.form and all(mine >= theirs for mine, theirs in zip(shape[:4], other[:4], strict=True))


def widest(values: AxisValues, shape: FitShape, size_of: SizeOf, limits: Sequence[Limit]) -> Candidate | None:
    """The shape with the greatest width that meets the limits; None where the least is too much."""
    low, high = -1, len(values.width) - 1  # the place of the greatest width that is known to fit, and the last that may
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        wide = shape._replace(width=values.width[middle])
        size = size_of(wide)
        if exceeded(limits, wide, size):
            high = middle - 1
        else:
            low, best = middle, Candidate(wide, size)
    return best


def _single_cuts(found: Iterable[FitShape], original: FitShape) -> dict[FitShape, Literal["experts", "width", "layers"]]:
    """Of the shapes that cut one thing only, the largest for each thing. Fewer experts may leave fewer active ones."""
    cuts: dict[FitShape, Literal["experts", "width", "layers"]] = {}
    of_experts = [s for s in found if s.layers == original.layers and s.width == original.width and s != original]
    of_width = [s for s in found if s[:2] == original[:2] and s.experts_per_token == original.experts_per_token and s != original]
    of_layers = [s for s in found if s[1:4] == original[1:4] and s != original]
    for cut, shapes in (("experts", of_experts), ("width", of_width), ("layers", of_layers)):
        if shapes:
            cuts[max(shapes)] = cut  # type: ignore[assignment]
    return cuts


def check_possible(
    values: AxisValues, size_of: SizeOf, limits: Sequence[Limit], forms: Sequence[Literal["moe", "dense"]] = ("moe",)
) -> None:
    """Raises PollardError where the original meets the limits already, and where not even the smallest shape does."""
    original = values.original
    if not exceeded(limits, original, size_of(original)):
        sizes = ", ".join(f"{limit.text(limit.amount(original, size_of(original)))} of {limit.key}" for limit in limits)
        raise PollardError(
            f"The original meets the limits of pruning.fit already (it has {sizes}): there is nothing to cut. Give smaller "
            "limits.",
            code="fit.nothing-to-cut",
        )
    smallest = values.smallest(forms[0])
    if limit := exceeded(limits, smallest, size_of(smallest)):
        raise PollardError(
            f"pruning.fit.{limit.key} is {limit.text(limit.most)}, and the smallest shape has "
            f"{limit.text(limit.amount(smallest, size_of(smallest)))}: {described(smallest)}. Give a greater limit, or allow "
            "more cuts (pruning.fit.cuts).",
            code="fit.limit-too-small",
        )


def described(shape: FitShape) -> str:
    """ "3 layers × 6 experts × 152 channels, 2 active per token"."""
    layers = f"{shape.layers} layer{'s' * (shape.layers > 1)}"
    if shape.form == "dense":
        return f"{layers} × {shape.experts} experts × {shape.width} channels in one layer each (dense)"
    experts = f"{shape.experts} expert{'s' * (shape.experts > 1)}"
    return f"{layers} × {experts} × {shape.width} channels, {shape.experts_per_token} active per token"
