"""The shapes that look best, each as a whole, on the dev slice -> fit.json: their losses and answers, and the best of them."""

from dataclasses import dataclass, replace
from itertools import chain

from toolkit.cuts.fit_result import Answered, FitResult, MeasuredShape
from toolkit.estimate import Machine, StageEstimate, combined_estimate, repeated
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_estimates import dev_questions, trial_of_largest
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief, other_placements, smaller_batches
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import FIT_MEASURE, FIT_SCORES
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.fit import FitStage
from toolkit.pipeline.stages.prune import Prune
from toolkit.pipeline.stages.refit import Refit
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
    inside = FIT_SCORES

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (FIT_SCORES,)

    def purpose(self) -> str:
        refit = ", refit" if self.fit.refit else ""
        return f"measure the {self.fit.measured} shapes that look best{refit}, and the best that cut one thing only"

    def outlook(self) -> str:
        how = "each is cut, refit and asked" if self.fit.refit else "each is masked and asked"
        return f"{how}: {self.fit.examples:,} dev examples"

    @property
    def shapes(self) -> int:
        """That are measured, at most: those that look best, and for every cut the best that cuts nothing else."""
        return self.fit.measured + len(self.fit.cuts)

    def estimate(self, machine: Machine) -> StageEstimate:
        """As if every shape were as large as the largest, and as slow as the original where it is masked."""
        sizes, fit, passes = RecipeOnMachine(self.context, machine), self.fit, 1 + (self.fit.metric == "fidelity")
        written = self.shapes if fit.refit else int("dense" in fit.cuts)
        masked = self.shapes - written
        parts = [repeated(part, 1 + masked) for part in dev_questions(sizes, sizes.original(), fit, passes)]
        if written:
            changes = {"refit": fit.refit} if fit.refit else {"refit": False, "form": "dense"}
            trial = trial_of_largest(self.context, changes, self.context.recipe.finetuning)
            stages: list[Stage] = [Calibrate(trial), Prune(trial), *([Refit(trial)] if fit.refit else [])]
            once = [stage.estimate(machine) for stage in stages] + dev_questions(sizes, sizes.pruned(), fit, passes)
            parts += [repeated(part, written) for part in once if part]
        work = f"{1 + masked} masked" * bool(masked) + "; " * bool(masked and written) + f"{written} written" * bool(written)
        found = combined_estimate(self.name, f"{work}: the loss and the answers to {fit.examples:,} dev examples", parts)
        return replace(found, disk=min(written, 1 + TRIED) * found.disk)

    def relief(self, machine: Machine) -> Relief:
        """Losses are read in batches of calibration, answers written in those of evaluation."""
        estimate, recipe = self.estimate(machine), self.context.recipe
        batches = [smaller_batches(recipe, section, estimate, machine) for section in ("calibration", "evaluation")]
        spread = (each for each in other_placements(recipe, machine) if each.overrides == {"model.placement": "spread"})
        return Relief(chain(*batches), placements=spread)

    def run(self) -> MeasureFacts:
        evidence, result = FitEvidence(self.context), self.load()
        evidence.observe()  # somebody may have removed what was observed
        measurements = ShapeMeasurements(evidence, self.fingerprints.asked)
        places = to_measure(result.shapes, self.fit.measured)
        found = measurements.measure([result.shapes[place].shape for place in places], needed=TRIED)
        original = found[None]
        for place in places:
            record = result.shapes[place]
            record.measured = _relative(found[record.shape], original)
            if self.fit.dtype == "checkpoint":
                record.bytes = record.measured.bytes or record.bytes
        result.original.measured = Answered(**original.model_dump(include={*Answered.model_fields}))
        result.chosen, result.fingerprint = best_measured(result.shapes, self.fit.metric)[0], self.fingerprint()
        result.reason = reason_of_measured(result)
        shape = result.choice.shape
        if self.fit.allocation == "measured" and shape.experts < result.original.experts and shape.form == "moe":
            result.allocation = measurements.allocation(shape)
        self.save(result)
        say(f"  best: {described(shape)}, {size(result.choice.bytes)}: {result.reason}")
        return MeasureFacts(len(places))


def reason_of_measured(result: FitResult) -> str:
    """ "the smallest loss on the dev slice of 11 shapes that were measured"."""
    measured = sum(record.measured is not None for record in result.shapes)
    return f"{METRICS[result.metric]} of {measured} shapes that were measured"


def _relative(found: MeasuredShape, original: MeasuredShape) -> MeasuredShape:
    """Its loss as what is added to the original's."""
    if found.loss is None or original.loss is None:
        return found
    return found.model_copy(update={"loss": found.loss - original.loss})
