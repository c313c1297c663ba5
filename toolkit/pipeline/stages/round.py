"""A round before the last: a run of its own in rounds/, which prunes to more experts than the last round and recovers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.rounds import early_rounds, recipe_of_round, share_teaching
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stages.names import MADE_BY
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main


@dataclass(frozen=True)
class RoundFacts(Facts):
    keep: int


class Round(Stage):
    """Its finished stages are skipped like those of any run."""

    kind = "rounds"
    result = "unique"

    def __init__(self, context: RunContext, keep: int) -> None:
        """`keep`: how many experts of each block it leaves."""
        super().__init__(context)
        self.keep, self.output = keep, f"rounds/{keep}/recovered"
        earlier = [name for name in self.names(context) if name != self.name]
        self.needs = (*TEACHING, *earlier[: early_rounds(context.recipe).index(keep)][-1:])

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence[Stage]) -> Sequence[Self]:
        return [cls(context, keep) for keep in early_rounds(context.recipe)]

    @classmethod
    def names(cls, context: RunContext) -> tuple[str, ...]:
        """The names of all early rounds, in order."""
        return tuple(f"{cls.kind}/{keep}" for keep in early_rounds(context.recipe))

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.keep}"

    def purpose(self) -> str:
        return f"on the way: prune to {self.keep} experts and recover"

    def fingerprint(self) -> str:
        return self.context.fingerprints.rounds[self.keep]

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
