"""A recipe on a machine, stage by stage, from the model's configuration alone: nothing is fetched, no weights are read."""

from toolkit.estimate import DISK_BANDWIDTH, Estimate, Machine
from toolkit.estimate.machine import USABLE, UTILISATION
from toolkit.estimate.stage_estimate import BANDWIDTH_SHARE
from toolkit.moe import expert_width, find_blocks
from toolkit.moe.load import check_runnable
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stage_list import stages_of
from toolkit.recipe.schema import Recipe


class Estimator:
    """Estimates a recipe and variants of it on one machine; what they have in common is counted once."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._first: RunContext | None = None  # of the first recipe: what it counts serves the others

    def on(self, machine: Machine) -> "Estimator":
        """The same for another machine, without counting the models anew."""
        other = Estimator(machine)
        other._first = self._first
        return other

    def context(self, recipe: Recipe) -> RunContext:
        if self._first is None:
            self._first = RunContext(recipe)
        return self._first.variant(recipe)

    def estimate(self, recipe: Recipe) -> Estimate:
        """Raises PollardError as the stages would: for a dense model, for numbers its routers cannot serve, for local data
        that is not there."""
        context = self.context(recipe)
        sizes, ranks = RecipeOnMachine(context, self.machine), self.machine.ranks
        check_runnable(context.config, recipe.model.path)
        planned = stages_of(context)
        budget = context.budget
        original, pruned, data = sizes.original(), sizes.pruned(), context.data_sizes
        estimates = [stage.estimate(self.machine) for stage in planned]
        lengths = "max_length tokens for every example, an upper bound, where data or tokenizer are not on this machine"
        return Estimate(
            machine=self.machine,
            parameters=(original.parameters, pruned.parameters),
            active=(original.active, pruned.active),
            experts=(find_blocks(original.model)[0].expert_count, budget.keep),
            width=(expert_width(original.model), budget.width) if budget.width else None,
            layers=(budget.depth, budget.layer_count) if budget.layer_count else None,
            tokens_per_step=round(sizes.trainer.examples_per_step(ranks) * data.training.mean),
            steps=sizes.trainer.steps(data.training.examples, ranks),
            stages=[estimate for estimate in estimates if estimate is not None],
            at_most=context.is_provisional,
            assumptions=[f"lengths: {'those of a sample of the data' if data.all_measured else lengths}", *self.assumptions()],
        )

    def stage(self, recipe: Recipe, name: str) -> Stage:
        """One of the recipe's stages, by its name."""
        return next(stage for stage in stages_of(self.context(recipe)) if stage.name == name)

    def assumptions(self) -> list[str]:
        """Those of every recipe."""
        lines = [
            f"memory: {1 - USABLE:.0%} of every GPU and host is left to CUDA, the system and fragments",
            f"disk: {DISK_BANDWIDTH / 1e9:.0f} GB/s",
        ]
        if self.machine.gpu:
            gpu = self.machine.gpu
            lines.append(
                f"time: {UTILISATION:.0%} of {gpu.name}'s {gpu.flops / 1e12:,.0f} TFLOP/s; while generating, "
                f"{BANDWIDTH_SHARE:.0%} of its {gpu.bandwidth / 1e12:.2f} TB/s if that is slower"
            )
        elif self.machine.cpu:
            cpu = self.machine.cpu
            lines.append(
                f"time: {UTILISATION:.0%} of the {cpu.flops / 1e9:,.0f} GFLOP/s that were measured here just now; starting and "
                "loading are not counted"
            )
        elif self.machine.gpus:
            lines.append("time: not estimated, for the kind of GPU is not known (--gpu h100)")
        return lines
