"""Plan and source -> pruned/: a checkpoint without the other experts, verified."""

from dataclasses import dataclass

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.estimate import DISK_BANDWIDTH, GIB, Machine, StageEstimate
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import MADE_BY, MERGE
from toolkit.pipeline.stages.select import Select
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say

RANK_BYTES = GIB // 2  # of RAM that a rank takes while it prunes, without the blocks that are checked
CHECKED_BLOCKS = 3  # MoE blocks that are run to check the result, one on a rank at a time
MERGED = 5 / 3  # memory of a block while transformers merges its experts, in times its size


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
    last_screen = Shown(3, "the pruned model")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (Select.kind, MERGE, *round_names(context.recipe)[-1:])

    def purpose(self) -> str:
        if first := self.context.first_run:
            return f"put the chosen experts of the original behind those of {first.onto}"
        return "cut the others out of the checkpoint"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.PRUNED]

    def estimate(self, machine: Machine) -> StageEstimate:
        """Bytes are copied by the kernel; in memory are the MoE blocks that are checked."""
        sizes = RecipeOnMachine(self.context, machine)
        source, pruned = sizes.observed(), sizes.pruned()
        between = sizes.pruned_experts().bytes if self.context.recipe.pruning.form == "dense" else 0
        block = round(MERGED * source.weight_bytes * source.largest_block)
        blocks = min(CHECKED_BLOCKS, machine.ranks_per_node) * block
        return StageEstimate(
            self.name,
            work=f"{source.bytes / GIB:,.1f} GiB read, {pruned.bytes / GIB:,.1f} GiB written",
            host={"blocks": blocks, "ranks": machine.ranks_per_node * RANK_BYTES},
            disk=pruned.bytes + between,
            seconds=(source.bytes + pruned.bytes + 2 * between) / DISK_BANDWIDTH,
        )

    def outlook(self) -> str:
        if self.context.recipe.pruning.form == "dense":
            return "no forward pass: tensors are copied, then every block's experts put into one layer"
        return "no forward pass: tensors are copied"

    def run(self) -> PruningFacts:
        source, run = self.context.source, self.context.directory
        plan = Plan.load(run.dense if self.context.recipe.pruning.form == "dense" else run.plan)
        prune_checkpoint(source.path, plan, run.pruned, source.revision, overwrite=True)
        size = checkpoint_bytes(run.pruned)
        say(f"  {run.pruned}: {size / 2**20:,.1f} MiB")
        return PruningFacts(size)
