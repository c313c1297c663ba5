"""A recipe on a machine, stage by stage, from the model's configuration alone."""

from collections.abc import Callable
from typing import Any, TypeVar

from toolkit.estimate import DataSizes, Estimate, Machine, StageEstimate, cannot_fit
from toolkit.estimate.machine import USABLE, UTILISATION
from toolkit.estimate.stage_estimate import BANDWIDTH_SHARE, DISK_BANDWIDTH
from toolkit.moe import find_blocks
from toolkit.moe.load import check_runnable
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.runner import plan_stages
from toolkit.pipeline.stage_estimates import estimate_stage
from toolkit.recipe.schema import Recipe

T = TypeVar("T")


class Estimator:
    """Estimates a recipe, and variants of it, on one machine; what variants share is counted once."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._cache: dict[tuple[Any, ...], Any] = {}

    def on(self, machine: Machine) -> "Estimator":
        """The same for another machine, without counting the models anew."""
        other = Estimator(machine)
        other._cache = self._cache
        return other

    def of(self, recipe: Recipe) -> RecipeOnMachine:
        return RecipeOnMachine(recipe, self.machine, self._cache)

    def estimate(self, recipe: Recipe) -> Estimate:
        """Raises PollardError as the stages would: for a dense model, for numbers its routers cannot serve, for local data
        that is not there."""
        on = self.of(recipe)
        check_runnable(on.config, recipe.model.path)
        names = [stage.name for stage in plan_stages(recipe) if stage.name != "report"]
        original, pruned, data = on.original(), on.pruned(), on.data
        examples = on.trainer.examples_per_step(self.machine.ranks)
        return Estimate(
            machine=self.machine,
            parameters=(original.parameters, pruned.parameters),
            active=(original.active, pruned.active),
            experts=(find_blocks(original.model)[0].expert_count, on.budget.keep),
            tokens_per_step=round(examples * data.training.mean),
            steps=on.trainer.steps(data.training.examples, self.machine.ranks),
            stages=[self.stage(recipe, name) for name in names],
            assumptions=[_lengths(data), *self.assumptions()],
        )

    def stage(self, recipe: Recipe, name: str) -> StageEstimate:
        """One of the pipeline's stages, by its name there."""
        return estimate_stage(self.of(recipe), name)

    def cannot_fit(self, recipe: Recipe) -> bool:
        """Whether fine-tuning cannot fit even without activations; quick."""
        on = self.of(recipe)
        return cannot_fit(on.finetuning(on.pruned(on.trainer.dtype)), self.machine)

    def kept(self, recipe: Recipe) -> int:
        """Experts per block."""
        return self.of(recipe).budget.keep

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        return RecipeOnMachine.once(self, key, make)  # type: ignore[arg-type]

    @property
    def cache(self) -> dict[tuple[Any, ...], Any]:
        return self._cache

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
        elif self.machine.gpus:
            lines.append("time: not estimated, for the kind of GPU is not known (--gpu h100)")
        return lines


def _lengths(data: DataSizes) -> str:
    if data.all_measured:
        return "lengths: those of a sample of the data"
    return "lengths: max_length tokens for every example, an upper bound, where data or tokenizer are not on this machine"
