"""The axes of a fit: each count alone, at the values that shapes within the limits have."""

from collections.abc import Callable, Mapping, Sequence

from toolkit.cuts.fit_result import Axis, AxisPoint, FitShape
from toolkit.runtime.errors import PollardError
from toolkit.selection.fit import AxisValues

WIDTHS = 8  # of the width at most so many values are measured; the line between two stands for those in between


def axis_shapes(values: AxisValues, layers: Sequence[int]) -> Mapping[str, list[FitShape]]:
    """By the key of a shape, the shapes that differ from the original in this count alone. `layers`: the numbers of layers that
    can be left."""
    original, step = values.original, max(1, len(values.width) // WIDTHS)
    counts = {
        "layers": [number for number in values.layers if number in layers],
        "experts": values.experts,
        "width": sorted({values.width[0], *values.width[step - 1 :: step]}),
        "experts_per_token": values.experts_per_token,
    }
    shapes: dict[str, list[FitShape]] = {}
    for key, numbers in counts.items():
        whole = getattr(original, key)
        changed = [FitShape(*(original._asdict() | {key: number}).values()) for number in numbers if number != whole]
        shapes[key] = [shape._replace(experts_per_token=min(shape.experts_per_token, shape.experts)) for shape in changed]
    return {key: found for key, found in shapes.items() if found}


def axes_of(
    shapes: Mapping[str, Sequence[FitShape]], original: FitShape, loss: Callable[[FitShape | None], float | None]
) -> list[Axis]:
    """`shapes` as `axis_shapes` has them; `loss`: what was measured (None: not finite), the original's for None. Raises
    PollardError where the original's is not finite."""
    before = loss(None)
    if before is None:
        raise PollardError(
            "The original's loss on the dev slice is not finite: there is nothing to compare with. Is its data empty, or does "
            "the model overflow (model.dtype=float32)?",
            code="fit.no-loss",
        )
    axes = []
    for key, changed in shapes.items():
        deltas = [(getattr(shape, key), loss(shape)) for shape in changed]
        points = [AxisPoint(value=value, delta=None if after is None else after - before) for value, after in deltas]
        axes.append(Axis.model_validate({"cut": key, "original": getattr(original, key), "points": points}))
    return axes
