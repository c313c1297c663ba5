"""A round before the last: a run of its own in rounds/, which cuts less than the last round and recovers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from toolkit.estimate import Machine, StageEstimate, combined_estimate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import training_outlook
from toolkit.pipeline.recipe_on_machine import recipe_to
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.rounds import ROUNDS, early_rounds, recipe_of_round, share_teaching
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.layers import Layers
from toolkit.pipeline.stages.prune import Prune
from toolkit.pipeline.stages.recover import Recover
from toolkit.pipeline.stages.refit import Refit
from toolkit.pipeline.stages.student import StudentStage
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.pipeline.training_changes import LighterTraining, smaller_training
from toolkit.recipe.roles import Role
from toolkit.recipe.step import StepRecipe
from toolkit.runtime.distributed import on_main


@dataclass(frozen=True)
class RoundFacts(Facts):
    keep: int


class Round(Stage):
    """Its finished stages are skipped like those of any run."""

    kind = ROUNDS
    result = "unique"

    def __init__(self, context: RunContext, step: StepRecipe) -> None:
        """`step`: what stays of the original after it."""
        super().__init__(context)
        self.step, self.output = step, f"rounds/{step.name}/recovered"
        self.before = early_rounds(context.recipe)[: early_rounds(context.recipe).index(step)]
        self.needs = (*TEACHING, *(f"{self.kind}/{earlier.name}" for earlier in self.before[-1:]))

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence[Stage]) -> Sequence[Self]:
        return [cls(context, step) for step in early_rounds(context.recipe)]

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.step.name}"

    def with_context(self, context: RunContext) -> Self:
        return type(self)(context, self.step)

    def purpose(self) -> str:
        return f"on the way: prune to {self.step} and recover"

    def fingerprint(self) -> str:
        return self.context.fingerprints.rounds[self.step]

    def estimate(self, machine: Machine) -> StageEstimate:
        context = self.context.variant(recipe_to(self.context.recipe, self.step, self.before))
        stages: list[Stage] = [Layers(context), Calibrate(context), Prune(context), Refit(context)]
        stages += [*StudentStage.planned(context, None, ()), Recover(context)]
        estimates = [stage.estimate(machine) for stage in stages if stage.is_asked_for()]
        parts = [estimate for estimate in estimates if estimate]
        work = f"to {self.step}: " + "; ".join(part.work for part in parts)
        return combined_estimate(self.name, work, parts)

    def outlook(self) -> str:
        return f"prune to {self.step} and recover: {training_outlook(self.context, self.context.data_sizes.training)}"

    def relief(self, machine: Machine) -> Relief:
        return Relief(LighterTraining(self.context.recipe, machine).changes())

    def smaller(self) -> str:
        return smaller_training(self.context.recipe)

    def run(self) -> RoundFacts:
        assert self.context.run_stages, "a round is run by what runs stages"
        on_main(lambda: share_teaching(self.context.directory, self.step))
        self.context.run_stages(self.own_context(), MADE_BY[Role.RECOVERED])
        return RoundFacts(self.context.budget_of(self.context.recipe.pruning.of_step(self.step)).keep)

    def own_context(self) -> RunContext:
        """This round's own: it starts from what the round before left, and is taught by the original."""
        context = self.context
        pruning = context.variant(recipe_to(context.recipe, self.step, self.before)).own_pruning
        directory = RunDirectory(self.step.name, context.directory.rounds)
        recipe = recipe_of_round(context.recipe, context.directory, self.step, pruning)
        return context.variant(recipe, directory, context.fingerprints.teaching)
