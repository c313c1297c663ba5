"""A round before the last: a run of its own in rounds/, which prunes to more experts than the last round and recovers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from toolkit.estimate import Machine, StageEstimate, combined_estimate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import training_outlook
from toolkit.pipeline.recipe_on_machine import recipe_keeping
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.rounds import ROUNDS, early_rounds, recipe_of_round, round_names, share_teaching
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.prune import Prune
from toolkit.pipeline.stages.recover import Recover
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.pipeline.training_changes import LighterTraining, smaller_training
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main


@dataclass(frozen=True)
class RoundFacts(Facts):
    keep: int


class Round(Stage):
    """Its finished stages are skipped like those of any run."""

    kind = ROUNDS
    result = "unique"

    def __init__(self, context: RunContext, keep: int) -> None:
        """`keep`: how many experts of each block it leaves."""
        super().__init__(context)
        self.keep, self.output = keep, f"rounds/{keep}/recovered"
        earlier = [name for name in round_names(context.recipe) if name != self.name]
        self.needs = (*TEACHING, *earlier[: early_rounds(context.recipe).index(keep)][-1:])

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence[Stage]) -> Sequence[Self]:
        return [cls(context, keep) for keep in early_rounds(context.recipe)]

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.keep}"

    def with_context(self, context: RunContext) -> Self:
        return type(self)(context, self.keep)

    def purpose(self) -> str:
        return f"on the way: prune to {self.keep} experts and recover"

    def fingerprint(self) -> str:
        return self.context.fingerprints.rounds[self.keep]

    def estimate(self, machine: Machine) -> StageEstimate:
        rounds = early_rounds(self.context.recipe)
        recipe = recipe_keeping(self.context.recipe, self.keep, rounds[: rounds.index(self.keep)])
        parts = [stage(self.context.variant(recipe)).estimate(machine) for stage in (Calibrate, Prune, Recover)]
        work = f"to {self.keep} experts: " + "; ".join(part.work for part in parts)
        return combined_estimate(self.name, work, parts)

    def outlook(self) -> str:
        return f"prune to {self.keep} experts and recover: {training_outlook(self.context)}"

    def relief(self, machine: Machine) -> Relief:
        return Relief(LighterTraining(self.context.recipe, machine).changes())

    def smaller(self) -> str:
        return smaller_training(self.context.recipe)

    def run(self) -> RoundFacts:
        assert self.context.run_stages, "a round is run by what runs stages"
        on_main(lambda: share_teaching(self.context.directory, self.keep))
        self.context.run_stages(self.own_context(), MADE_BY[Role.RECOVERED])
        return RoundFacts(self.keep)

    def own_context(self) -> RunContext:
        """This round's own: it starts from what the round before left, and is taught by the original."""
        directory = RunDirectory(str(self.keep), self.context.directory.rounds)
        recipe = recipe_of_round(self.context.recipe, self.context.directory, self.keep)
        return self.context.variant(recipe, directory, self.context.fingerprints.teaching)
