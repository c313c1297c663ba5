"""The best shapes, each written and fine-tuned for a tenth of the steps in a run of its own -> fit.json: which one is made.

Without fine-tuning in the recipe what was measured decides.
"""

from dataclasses import dataclass, replace

from rich.markup import escape

from toolkit.cuts.fit_result import FitResult, ShapeRecord
from toolkit.estimate import Machine, StageEstimate, combined_estimate, repeated
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_estimates import dev_questions, trial_of_largest
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.fit_trials import ShapeTrials, shorter_training
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import FIT_CHOOSE, FIT_MEASURE
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.fit import FitStage
from toolkit.pipeline.stages.fit_measure import reason_of_measured
from toolkit.pipeline.stages.prune import Prune
from toolkit.pipeline.stages.recover import Recover
from toolkit.pipeline.stages.refit import Refit
from toolkit.pipeline.stages.student import StudentStage
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.pipeline.training_changes import LighterTraining, smaller_training
from toolkit.recipe.roles import Role
from toolkit.report.fit_table import show_fit
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import p_value, percent, points
from toolkit.runtime.intervals import pair_of
from toolkit.selection.fit import TRIED, best_measured, paired_choice
from toolkit.selection.fit.shapes import described

NOT_FINITE = ("recovery.not-finite", "refit.not-finite")
"""Errors that speak of one shape, and not of the run."""


@dataclass(frozen=True)
class ChoiceFacts(Facts):
    layers: int
    experts: int
    width: int
    experts_per_token: int
    form: str


class FitChoose(FitStage):
    kind = FIT_CHOOSE
    inside = FIT_MEASURE
    sections = DECIDING[Role.RECOVERED]
    last_screen = Shown(5, "the shapes that were compared")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (*TEACHING, FIT_MEASURE)

    def purpose(self) -> str:
        if not self._trains:
            return "choose what was measured best: nothing is fine-tuned"
        return f"fine-tune the best {TRIED} for a tenth of the steps, and ask them the dev questions"

    def fingerprint(self) -> str:
        return self.fingerprints.choice

    @property
    def _trains(self) -> bool:
        return Role.RECOVERED in self.context.asked.evaluation.models

    def outlook(self) -> str:
        return f"{TRIED} short recoveries" if self._trains else "nothing is run"

    def estimate(self, machine: Machine) -> StageEstimate:
        """As if the shapes that are tried were as large as the largest."""
        if not self._trains:
            return StageEstimate(self.name, "nothing is run", seconds=0.0)
        recipe = self.context.recipe
        finetuning = recipe.finetuning.model_copy(update={"trainer": shorter_training(recipe)})
        trial = trial_of_largest(self.context, {}, finetuning)
        sizes = RecipeOnMachine(self.context, machine)
        refit = [Refit(trial)] if recipe.pruning.refit else []
        student = StudentStage.planned(trial, None, ())
        stages: list[Stage] = [Calibrate(trial), Prune(trial), *refit, *student, Recover(trial)]
        once = [part for stage in stages if (part := stage.estimate(machine))] + dev_questions(sizes, sizes.pruned(), self.fit)
        work = f"{TRIED} shapes: a tenth of the steps, and the answers to {self.fit.examples:,} dev examples"
        found = combined_estimate(self.name, work, [repeated(part, TRIED) for part in once])
        return replace(found, disk=TRIED * found.disk)

    def relief(self, machine: Machine) -> Relief:
        return Relief(LighterTraining(self.context.recipe, machine).changes())

    def smaller(self) -> str:
        return smaller_training(self.context.recipe)

    def run(self) -> ChoiceFacts:
        result, evidence = self.load(), FitEvidence(self.context)
        evidence.observe()  # somebody may have removed what was observed
        for record in (record for record in result.shapes if record.measured):
            record.trial = record.refused = None  # of settings of before
        tried = best_measured(result.shapes, self.fit.metric, TRIED)
        if self._trains and len(tried) > 1:
            measurements = ShapeMeasurements(evidence, self.fingerprints.asked)
            for place in tried:
                _try(measurements, result.shapes[place])
            tried = [place for place in tried if result.shapes[place].refused is None]
            if not tried:
                raise PollardError(
                    "No shape of the fit can be fine-tuned: the loss of each trial is not finite. Lower "
                    "finetuning.trainer.learning_rate.",
                    code="fit.no-finite-trial",
                )
            result.chosen = paired_choice(result.shapes, tried)
            result.reason = _reason(result, [result.shapes[place] for place in tried])
        else:
            result.chosen, result.reason = tried[0], reason_of_measured(result)
        self.save(result)
        on_main(ShapeTrials(evidence).drop_weights)
        show_fit(result)
        return ChoiceFacts(*result.choice.shape)


def _try(measurements: ShapeMeasurements, record: ShapeRecord) -> None:
    """A shape that does not come out of its fine-tuning with a finite loss is refused; the others decide."""
    try:
        record.trial = measurements.recover(record.shape)
        record.refused = "its loss after fine-tuning is not finite" if record.trial.loss is None else None
    except PollardError as error:
        if error.code not in NOT_FINITE:
            raise
        record.refused = f"its fine-tuning failed: {error}"
    if record.refused:
        say(f"  [yellow]{described(record.shape)} {escape(record.refused)}[/]")


def _reason(result: FitResult, tried: list[ShapeRecord]) -> str:
    best = result.choice
    trials = [record.trial for record in tried if record is not best and record.trial]
    assert best.trial
    text = f"{percent(best.trial.score)} of {best.trial.n} dev questions right after {best.trial.steps} steps"
    if not trials:
        return text
    compared = pair_of(best.trial.right, max(trials, key=lambda trial: trial.score or 0.0).right)
    return f"{text}, {points(compared.difference)} points against the next ({p_value(compared.p)})"
