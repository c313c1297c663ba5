"""The best shapes, each written and fine-tuned for a tenth of the steps in a run of its own -> fit.json: which one is made.

Without fine-tuning in the recipe what was measured decides.
"""

import json
from dataclasses import dataclass

from toolkit.cuts.fit_result import FitResult, FitShape, ShapeRecord, TrialRecovery
from toolkit.evaluation import completion_loss
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_choice import TRIAL_SHARE
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements, recovered_for
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.rounds import link_teaching, trains
from toolkit.pipeline.stage import Facts, Shown
from toolkit.pipeline.stage_names import EVALUATE, FIT_CHOOSE, FIT_MEASURE, stage_name
from toolkit.pipeline.stages.fit import FitStage
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.recipe.roles import Role
from toolkit.report.fit_table import show_fit
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.formatting import p_value, percent, points
from toolkit.runtime.intervals import pair_of
from toolkit.selection.fit import best_measured, paired_choice
from toolkit.selection.fit.shapes import described

TRIED = 3  # of the shapes that were measured


@dataclass(frozen=True)
class ChoiceFacts(Facts):
    layers: int
    experts: int
    width: int
    experts_per_token: int
    form: str


class FitChoose(FitStage):
    kind = FIT_CHOOSE
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
        return trains(self.context.asked)

    def outlook(self) -> str:
        return f"{TRIED} short recoveries" if self._trains else "nothing is run"

    def run(self) -> ChoiceFacts:
        result = self.load()
        tried = best_measured(result.shapes, self.fit.metric, TRIED)
        if self._trains and len(tried) > 1:
            measurements = ShapeMeasurements(FitEvidence(self.context), self.fingerprints.asked)
            for place in tried:
                result.shapes[place].trial = self._try(measurements, result.shapes[place].shape)
            result.chosen = paired_choice(result.shapes, tried)
            result.reason = _reason(result, [result.shapes[place] for place in tried])
        else:
            result.chosen = tried[0]
        self.save(result)
        show_fit(result)
        return ChoiceFacts(*result.choice.shape)

    def _try(self, measurements: ShapeMeasurements, shape: FitShape) -> TrialRecovery:
        """In a run of its own, whose finished stages are skipped like those of any run."""
        context = self.context
        assert context.run_stages, "a trial is run by what runs stages"
        recipe = context.asked
        finetuning = recipe.finetuning.model_copy(update={"trainer": recovered_for(recipe, TRIAL_SHARE)})
        plain = measurements.trial(shape)
        evaluation = plain.recipe.evaluation.model_copy(update={"models": ["recovered"]})
        trial = measurements.trial(shape, finetuning=finetuning, evaluation=evaluation)
        say(f"[bold]trial[/] {described(shape)}")
        on_main(lambda: link_teaching(context.directory, trial.directory.path))
        context.run_stages(trial, stage_name(EVALUATE, Role.RECOVERED))
        answers = _answers(trial)
        path = trial.checkpoint(Role.RECOVERED).path
        loss = with_model(recipe, path, None, lambda model: completion_loss(model, measurements.probe.batches).finite)
        return answers.model_copy(update={"loss": loss})


def _answers(trial: RunContext) -> TrialRecovery:
    run = trial.directory

    def read() -> TrialRecovery:
        scored = json.loads((run.evaluation / "recovered.json").read_text())
        lines = (run.evaluation / "recovered.predictions.jsonl").read_text().splitlines()
        right = "".join(str(int(json.loads(line)["correct"])) for line in lines)
        entry = run.entries()["recover"]
        return TrialRecovery(
            loss=None, score=scored["score"], n=scored["n"], interval=tuple(scored["interval"]), right=right,
            steps=int(entry.get("steps", 0)), seconds=float(entry["seconds"]),
        )  # fmt: skip

    return on_main(read)


def _reason(result: FitResult, tried: list[ShapeRecord]) -> str:
    best = result.choice
    trials = [record.trial for record in tried if record is not best and record.trial]
    assert best.trial
    text = f"{percent(best.trial.score)} of {best.trial.n} dev questions right after {best.trial.steps} steps"
    if not trials:
        return text
    compared = pair_of(best.trial.right, max(trials, key=lambda trial: trial.score or 0.0).right)
    return f"{text}, {points(compared.difference)} points against the next ({p_value(compared.p)})"
