"""The axes of a fit: each count alone, at the values that shapes within the limits have."""

from collections.abc import Mapping, Sequence

from toolkit.cuts.fit_result import Axis, AxisPoint, FitShape
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_losses import PlanLosses
from toolkit.pipeline.fit_space import FitSpace
from toolkit.runtime.errors import PollardError

WIDTHS = 8  # of the width at most so many values are measured; the line between two stands for those in between
AxisKey = str


def axis_shapes(space: FitSpace, layers: Sequence[int]) -> Mapping[AxisKey, list[FitShape]]:
    """By the key of a shape, the shapes that differ from the original in this count alone. `layers`: the numbers of layers that
    can be left."""
    original, values = space.original, space.values
    step = max(1, len(values.width) // WIDTHS)
    counts = {
        "layers": [number for number in values.layers if number in layers],
        "experts": values.experts,
        "width": sorted({values.width[0], *values.width[step - 1 :: step]}),
        "experts_per_token": values.experts_per_token,
    }
    shapes: dict[AxisKey, list[FitShape]] = {}
    for key, numbers in counts.items():
        changed = (
            FitShape(*(original._asdict() | {key: number}).values()) for number in numbers if number != getattr(original, key)
        )
        shapes[key] = [shape._replace(experts_per_token=min(shape.experts_per_token, shape.experts)) for shape in changed]
    return {key: found for key, found in shapes.items() if found}


def axes_of(evidence: FitEvidence, losses: PlanLosses) -> list[Axis]:
    """From the measured losses. Raises PollardError where the original's is not finite."""
    original, before = evidence.space.original, losses.get(None)
    if before is None:
        raise PollardError(
            "The original's loss on the dev slice is not finite: there is nothing to compare with. Is its data empty, or does "
            "the model overflow (model.dtype=float32)?",
            code="fit.no-loss",
        )
    axes = []
    for key, shapes in axis_shapes(evidence.space, list(evidence.kept_layers)).items():
        points = []
        for shape in shapes:
            after = losses.get(evidence.plan(shape))
            points.append(AxisPoint(value=getattr(shape, key), delta=None if after is None else after - before))
        axes.append(Axis.model_validate({"cut": key, "original": getattr(original, key), "points": points}))
    return axes
