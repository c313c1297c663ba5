"""Which shapes a fit does not look at, and why, so that nobody has to wonder where one is."""

from collections.abc import Sequence
from typing import Literal

from toolkit.cuts.fit_result import FitShape
from toolkit.selection.fit.limits import Limit, exceeded
from toolkit.selection.fit.shapes import AxisValues, Candidate, SizeOf, shapes_of_any_width, widest

CONTAINED = "another shape within the limits has as much of everything, or more"
Cut = Literal["experts", "width", "layers"]
CUTS: tuple[Cut, ...] = ("experts", "width", "layers")


def shapes_left_out(
    values: AxisValues,
    size_of: SizeOf,
    limits: Sequence[Limit],
    within: Sequence[Candidate],
    form: Literal["moe", "dense"] = "moe",
) -> list[Candidate]:
    """For every number of layers, experts and active experts that is not among `within` (what `shapes_within` found): the widest
    shape that meets the limits, which another contains, or else the narrowest, which does not. And of each cut that cannot meet
    them alone the smallest shape that it leaves, marked. All with the reason, in the order of their counts.
    """
    looked_at = {candidate.shape for candidate in within}
    left_out: dict[FitShape, Candidate] = {}
    for shape in shapes_of_any_width(values, form):
        if found := widest(values, shape, size_of, limits):
            if found.shape not in looked_at:
                left_out[found.shape] = found._replace(refused=CONTAINED)
            continue
        narrow = shape._replace(width=values.width[0])
        left_out[narrow] = Candidate(narrow, size_of(narrow), refused=_too_large(limits, narrow, size_of))
    possible = {candidate.single_cut for candidate in within}
    for cut in CUTS if form == "moe" else ():
        if cut not in possible and len(getattr(values, cut)) > 1:
            smallest = _smallest(values, cut)
            left_out[smallest] = Candidate(smallest, size_of(smallest), cut, _too_large(limits, smallest, size_of))
    return [left_out[shape] for shape in sorted(left_out, reverse=True)]


def _smallest(values: AxisValues, cut: Cut) -> FitShape:
    """The least that one cut alone can leave."""
    shape = values.original._replace(**{cut: getattr(values, cut)[0]})
    return shape._replace(experts_per_token=min(shape.experts_per_token, shape.experts))


def _too_large(limits: Sequence[Limit], shape: FitShape, size_of: SizeOf) -> str:
    """ "more than 3.72 MiB of bytes"."""
    limit = exceeded(limits, shape, size_of(shape))
    assert limit, "the shape meets the limits"
    return f"more than {limit.text(limit.most)} of {limit.key}"
