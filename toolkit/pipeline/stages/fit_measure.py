"""The shapes that look best, each as a whole, on the dev slice -> fit.json: their losses and answers, and the best of them."""

from dataclasses import dataclass

from toolkit.cuts.fit_result import Answered, MeasuredShape
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import FIT_MEASURE, FIT_SCORES
from toolkit.pipeline.stages.fit import FitStage
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say
from toolkit.runtime.formatting import size
from toolkit.selection.fit import TRIED, best_measured, to_measure
from toolkit.selection.fit.shapes import described

METRICS = {"dev_loss": "the smallest loss on the dev slice", "accuracy": "the most right answers", "fidelity": "the smallest KL"}


@dataclass(frozen=True)
class MeasureFacts(Facts):
    measured: int


class FitMeasure(FitStage):
    kind = FIT_MEASURE
    batch_section = "evaluation"
    resumes = ("fit",)

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (FIT_SCORES,)

    def purpose(self) -> str:
        refit = ", refit" if self.fit.refit else ""
        return f"measure the {self.fit.measured} shapes that look best{refit}, and the best that cut one thing only"

    def outlook(self) -> str:
        how = "each is cut, refit and asked" if self.fit.refit else "each is masked and asked"
        return f"{how}: {self.fit.examples:,} dev examples"

    def run(self) -> MeasureFacts:
        evidence, result = FitEvidence(self.context), self.load()
        measurements = ShapeMeasurements(evidence, self.fingerprints.asked)
        places = to_measure(result.shapes, self.fit.measured)
        found = measurements.measure([result.shapes[place].shape for place in places], needed=TRIED)
        original = found[None]
        for place in places:
            record = result.shapes[place]
            record.measured = _relative(found[record.shape], original)
            record.bytes = record.measured.bytes or record.bytes
        result.original.measured = Answered(**original.model_dump(include={*Answered.model_fields}))
        result.chosen, result.fingerprint = best_measured(result.shapes, self.fit.metric)[0], self.fingerprint()
        measured = sum(record.measured is not None for record in result.shapes)
        result.reason = f"{METRICS[self.fit.metric]} of {measured} shapes that were measured"
        shape = result.choice.shape
        if self.fit.allocation == "measured" and shape.experts < result.original.experts and shape.form == "moe":
            result.allocation = measurements.allocation(shape)
        self.save(result)
        say(f"  best: {described(shape)}, {size(result.choice.bytes)}: {result.reason}")
        return MeasureFacts(measured)


def _relative(found: MeasuredShape, original: MeasuredShape) -> MeasuredShape:
    """Its loss as what is added to the original's."""
    if found.loss is None or original.loss is None:
        return found
    return found.model_copy(update={"loss": found.loss - original.loss})
