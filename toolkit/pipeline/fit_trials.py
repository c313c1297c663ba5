"""Shapes that are written, in runs of their own: fit/trials/<shape>/. Weights stay only as long as they may be needed."""

import json
from collections.abc import Sequence
from pathlib import Path

from toolkit.cuts.fit_result import FitShape, TrialRecovery
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_choice import recipe_of_shape
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.rounds import link_teaching
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import EVALUATE, MADE_BY, stage_name
from toolkit.recipe.evaluation import EvaluationRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.signed_folders import remove_own

SHARE = 10  # of the steps of fine-tuning a trial does one of so many


def name_of(shape: FitShape) -> str:
    """As a folder: "3-layers-6-experts-152-wide-2-active"."""
    dense = "-dense" if shape.form == "dense" else f"-{shape.experts_per_token}-active"
    return f"{shape.layers}-layers-{shape.experts}-experts-{shape.width}-wide{dense}"


class ShapeTrials:
    """Those of one run's fit."""

    def __init__(self, evidence: FitEvidence) -> None:
        self.evidence, self.context, self.recipe = evidence, evidence.context, evidence.recipe
        fit = self.recipe.pruning.fit
        assert fit, "the recipe says its shape"
        self.fit, self.folder = fit, evidence.context.directory.fit / "trials"

    @property
    def measured_role(self) -> Role:
        """The model of a shape that is measured before any fine-tuning."""
        return Role.REFITTED if self.fit.refit else Role.PRUNED

    def write(self, shape: FitShape) -> RunContext:
        """Cuts, and refits where the fit does; returns the run, whose finished stages are skipped like those of any run."""
        recipe = self._recipe(shape, self.measured_role)
        pruning = recipe.pruning.model_copy(update={"refit": self.fit.refit})
        return self._run(shape, recipe.model_copy(update={"pruning": pruning}), MADE_BY[self.measured_role])

    def recover(self, shape: FitShape) -> tuple[RunContext, TrialRecovery]:
        """Cuts, refits where the run does, fine-tunes for a part of the steps, and answers the dev questions."""
        recipe = self._recipe(shape, Role.RECOVERED)
        finetuning = recipe.finetuning.model_copy(update={"trainer": shorter_training(recipe)})
        recipe = recipe.model_copy(update={"finetuning": finetuning})
        trial = self._run(shape, recipe, stage_name(EVALUATE, Role.RECOVERED))
        return trial, on_main(lambda: _answers(trial.directory))

    def _recipe(self, shape: FitShape, role: Role) -> Recipe:
        recipe = recipe_of_shape(self.recipe, shape, self.evidence.space.original, self.evidence.plans.kept_layers[shape.layers])
        settings = recipe.evaluation
        asked = {"models": [role], "split": "dev", "examples": self.fit.examples, "off_task": False}
        same = settings.model_dump(include={"batch_size", "max_new_tokens"})
        evaluation = EvaluationRecipe.model_validate(asked | same)  # greedy, and here: no server has its model
        return recipe.model_copy(update={"name": name_of(shape), "control": False, "evaluation": evaluation})

    def _run(self, shape: FitShape, recipe: Recipe, until: str) -> RunContext:
        assert self.context.run_stages, "a trial is run by what runs stages"
        say(f"[bold]trial[/] {name_of(shape)}")
        directory = self.directory(shape)
        on_main(lambda: link_teaching(self.context.directory, directory.path))
        trial = self.context.variant(recipe, directory, self.context.fingerprints.teaching)
        self.context.run_stages(trial, until)
        return trial

    def directory(self, shape: FitShape) -> RunDirectory:
        return RunDirectory(name_of(shape), self.folder)

    def drop_weights(self, needed: Sequence[FitShape] = ()) -> None:
        """Of all shapes but these, also of those of other limits. They can be made again; what was measured of them stays."""
        stays = {self.directory(shape).path for shape in needed}
        trials = [run for run in self.context.directory.inner_runs() if run.path.parent == self.folder]
        for run in (run for run in trials if run.path not in stays):
            for role in (Role.PRUNED, Role.REFITTED, Role.RECOVERED):
                if (run.path / role).is_dir():
                    run.note_removed(MADE_BY[role])  # first: what a kill leaves of it is not taken for whole
                    remove_own(run.path / role)
            for trained in run.student.glob("*/recovered"):
                remove_own(trained)


def shorter_training(recipe: Recipe) -> dict[str, object]:
    """The trainer's settings for one step of SHARE."""
    trainer = dict(recipe.finetuning.trainer)
    if (warmup := float(trainer.get("warmup_steps", 0))) >= 1:  # below, a part of all steps
        trainer["warmup_steps"] = max(1, int(warmup) // SHARE)
    if (steps := int(trainer.get("max_steps", -1))) > 0:
        return trainer | {"max_steps": max(1, steps // SHARE)}
    return trainer | {"num_train_epochs": float(trainer.get("num_train_epochs", 3)) / SHARE}


def _answers(run: RunDirectory) -> TrialRecovery:
    """What the evaluation of a recovered model has left; without the loss."""
    scored = json.loads((run.evaluation / f"{Role.RECOVERED}.json").read_text())
    lines = Path(run.evaluation, f"{Role.RECOVERED}.predictions.jsonl").read_text().splitlines()
    right = "".join(str(int(json.loads(line)["correct"])) for line in lines)
    entry = run.entries()[MADE_BY[Role.RECOVERED]]
    return TrialRecovery(
        loss=None, score=scored["score"], n=scored["n"], interval=tuple(scored["interval"]), right=right,
        steps=int(entry["steps"]), seconds=float(entry["seconds"]),
    )  # fmt: skip
