"""Plan and source -> pruned/: a checkpoint without the other experts, verified."""

from dataclasses import dataclass

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stages.names import MADE_BY
from toolkit.pipeline.stages.round import Round
from toolkit.pipeline.stages.select import Select
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say


@dataclass(frozen=True)
class PruningFacts(Facts):
    checkpoint_bytes: int


class Prune(Stage):
    kind = MADE_BY[Role.PRUNED]
    sections = DECIDING[Role.PRUNED]
    result = "by plan"
    output = "pruned"
    checkpoints = ("pruned",)
    remaking = "it is cut again from the original, where it is needed"
    last_screen = Shown(2, "the pruned model")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (Select.kind, *Round.names(context)[-1:])

    def purpose(self) -> str:
        return "cut the others out of the checkpoint"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.PRUNED]

    def run(self) -> PruningFacts:
        source, run = self.context.source, self.context.directory
        prune_checkpoint(source.path, Plan.load(run.plan), run.pruned, source.revision, overwrite=True)
        size = checkpoint_bytes(run.pruned)
        say(f"  {run.pruned}: {size / 2**20:,.1f} MiB")
        return PruningFacts(size)
