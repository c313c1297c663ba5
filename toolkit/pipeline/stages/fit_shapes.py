"""Limits -> fit.json: every shape within them that no other contains, the others with the reason, and how large each is. No
weights are read."""

from dataclasses import dataclass

from toolkit.cuts.fit_result import FitResult, FitShape, OriginalSize, ShapeRecord
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import FIT_SHAPES
from toolkit.pipeline.stages.fit import FitStage
from toolkit.recipe.fit import LIMITS
from toolkit.runtime.distributed import say
from toolkit.runtime.formatting import amount, size
from toolkit.selection.fit import Candidate


@dataclass(frozen=True)
class ShapesFacts(Facts):
    shapes: int


class FitShapes(FitStage):
    kind = FIT_SHAPES

    def purpose(self) -> str:
        limits = ", ".join(f"{limit.text(limit.most)} of {limit.key}" for limit in self.context.fit_space.limits)
        return f"list the shapes within {limits}"

    def outlook(self) -> str:
        return f"{len(self.context.fit_space.candidates()):,} shapes; no forward pass"

    def run(self) -> ShapesFacts:
        space, fit = self.context.fit_space, self.fit
        candidates = space.candidates()
        original, sizes = space.original, space.size(space.original)
        limits = {key: value for key in LIMITS if (value := getattr(fit, key)) is not None}
        limits |= {"context": fit.context, "batch": fit.batch} if fit.gpu is not None else {}
        result = FitResult(
            fingerprint=self.fingerprint(), limits=limits, dtype=fit.dtype, metric=fit.metric,
            original=OriginalSize.model_validate(_counts(original) | sizes._asdict()),
            kept_layers={number: list(kept) for number, kept in space.by_position.items()},
            shapes=[record_of(candidate) for candidate in [*candidates, *space.left_out(candidates)]],
        )  # fmt: skip
        self.save(result)
        largest = space.largest
        say(
            f"  {len(candidates):,} shapes; the largest: {size(largest.size.bytes)}, {amount(largest.size.parameters)} parameters"
        )
        return ShapesFacts(len(candidates))


def record_of(candidate: Candidate) -> ShapeRecord:
    """Without what is known of it."""
    known = {"single_cut": candidate.single_cut, "refused": candidate.refused}
    return ShapeRecord.model_validate(candidate.shape._asdict() | candidate.size._asdict() | known)


def _counts(shape: FitShape) -> dict[str, int]:
    """Of the original, which has no form but its own."""
    counts = shape._asdict()
    del counts["form"]
    return counts
