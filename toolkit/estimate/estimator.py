"""A recipe on a machine, stage by stage, from the model's configuration alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from toolkit.cuts.model_summary import pruned_meta_model
from toolkit.estimate.data_sizes import DataSizes, data_sizes
from toolkit.estimate.fidelity_harness import estimate_fidelity, estimate_harness
from toolkit.estimate.finetuning import estimate_recover, persistent_memory, trainer_of
from toolkit.estimate.machine import USABLE, UTILISATION, Machine
from toolkit.estimate.model import ModelNumbers, numbers_of
from toolkit.estimate.stage_estimate import BANDWIDTH_SHARE, DISK, Estimate, StageEstimate, in_turn, on_machine
from toolkit.estimate.stages import (
    estimate_answers,
    estimate_calibrate,
    estimate_evaluate,
    estimate_prune,
    estimate_select,
    estimate_teacher,
)
from toolkit.moe import find_blocks, load_config, meta_model
from toolkit.moe.load import check_runnable
from toolkit.pipeline.rounds import early_rounds
from toolkit.recipe.schema import Recipe

if TYPE_CHECKING:
    from toolkit.pipeline.context import Budget

T = TypeVar("T")


class Estimator:
    """Estimates a recipe, and variants of it, on one machine; what variants share is counted once."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._known: dict[tuple[Any, ...], Any] = {}

    def on(self, machine: Machine) -> "Estimator":
        """The same for another machine, without counting the models anew."""
        other = Estimator(machine)
        other._known = self._known
        return other

    def estimate(self, recipe: Recipe) -> Estimate:
        """Raises PollardError as the stages would: for a dense model, for numbers its routers cannot serve, for local data
        that is not there."""
        from toolkit.pipeline.runner import plan_stages  # until the stages estimate themselves

        check_runnable(self._config(recipe), recipe.model.path)
        names = [stage.name for stage in plan_stages(recipe) if stage.name != "report"]
        original, pruned = self._original(recipe), self._pruned(recipe, self._dtype(recipe))
        trainer, data = trainer_of(recipe, self.machine), self._amounts(recipe)
        examples = trainer.micro_batch * trainer.accumulation * self.machine.ranks
        return Estimate(
            machine=self.machine,
            parameters=(original.parameters, pruned.parameters),
            active=(original.active, pruned.active),
            experts=(find_blocks(original.model)[0].expert_count, self.kept(recipe)),
            tokens_per_step=round(examples * data.training.mean),
            steps=trainer.steps(data.training.examples, self.machine.ranks),
            stages=[self.stage(recipe, name) for name in names],
            assumptions=[_lengths(data), *self.assumptions()],
        )

    def stage(self, recipe: Recipe, name: str) -> StageEstimate:
        """One of the pipeline's stages, by its name there."""
        here, data, dtype = self.machine, self._amounts(recipe), self._dtype(recipe)
        if name == "calibrate":
            return estimate_calibrate(recipe, here, self._watched(recipe), data.calibration, data.evaluation)
        if name == "select":
            return estimate_select()
        if name == "prune":
            return estimate_prune(here, self._watched(recipe), self._pruned(recipe, dtype))
        if name == "skip":  # the routers of the last model, watched as calibration watches
            plain = recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"criterion": "frequency"})})
            plain = plain.model_copy(update={"calibration": plain.calibration.model_copy(update={"self_generated": False})})
            found = estimate_calibrate(plain, here, self._pruned(recipe, dtype), data.calibration, data.evaluation)
            return replace(found, name=name, disk=0)
        if name == "answers" and data.answers:
            return estimate_answers(recipe, here, self._original(recipe), data.answers)
        if name == "teacher":
            return estimate_teacher(recipe, here, self._original(recipe), data.training)
        if name == "recover":
            trained = self._pruned(recipe, trainer_of(recipe, here).dtype)
            return estimate_recover(recipe, here, trained, data.training)
        if name == "control":
            whole = self._original(recipe, trainer_of(recipe, here).dtype)
            return estimate_recover(recipe, here, whole, data.training, name)
        kind, _, which = name.partition("/")
        if kind == "rounds":
            return self._round(recipe, int(which), name)
        model = self._original(recipe) if which in ("original", "control") else self._pruned(recipe, dtype)
        if kind == "fidelity":
            return estimate_fidelity(recipe, here, which, model, data.calibration.limited(recipe.evaluation.fidelity))
        if kind == "harness":
            return estimate_harness(recipe, here, which, model)
        return estimate_evaluate(recipe, here, which, model, data.evaluation)

    def _round(self, recipe: Recipe, keep: int, name: str) -> StageEstimate:
        """A round before the last: a run of its own, as far as its recovery."""
        rounds = early_rounds(recipe)
        mine = _keeping(recipe, keep, rounds[: rounds.index(keep)])
        parts = [self.stage(mine, part) for part in ("calibrate", "select", "prune", "recover")]
        return in_turn(name, f"to {keep} experts: " + "; ".join(part.work for part in parts if part.name != "select"), parts)

    def hopeless(self, recipe: Recipe) -> bool:
        """Whether fine-tuning cannot fit even without activations; quick."""
        here, trainer = self.machine, trainer_of(recipe, self.machine)
        memory = persistent_memory(recipe, here, self._pruned(recipe, trainer.dtype))
        gpu, host = on_machine(here, memory.device, {"offloaded": here.ranks_per_node * memory.host})
        return bool(StageEstimate("recover", "", gpu, host).lacks(here))

    def kept(self, recipe: Recipe) -> int:
        """Experts per block."""
        return self._budget(recipe).keep

    def _dtype(self, recipe: Recipe) -> torch.dtype:
        """As `load_model` decides."""
        if recipe.model.dtype != "auto":
            return getattr(torch, recipe.model.dtype)
        return (self._config(recipe).dtype or torch.float32) if self.machine.gpus else torch.float32

    def _original(self, recipe: Recipe, dtype: torch.dtype | None = None) -> ModelNumbers:
        """In the dtype it answers in, unless given."""
        dtype = dtype or self._dtype(recipe)
        return self.once(("original", recipe.model, dtype), lambda: numbers_of(meta_model(self._config(recipe)), dtype))

    def _watched(self, recipe: Recipe) -> ModelNumbers:
        """What is watched and pruned: the original, or with rounds the one that the last of them before this leaves."""
        before = early_rounds(recipe)
        return self._pruned(_keeping(recipe, before[-1], []), self._dtype(recipe)) if before else self._original(recipe)

    def _pruned(self, recipe: Recipe, dtype: torch.dtype) -> ModelNumbers:
        keep, active, _ = self._budget(recipe)
        return self.once(
            ("pruned", recipe.model, keep, active, dtype),
            lambda: numbers_of(pruned_meta_model(self._config(recipe), keep, active), dtype),
        )

    def _budget(self, recipe: Recipe) -> "Budget":
        from toolkit.pipeline.context import RunContext  # until the stages estimate themselves

        return self.once(("budget", recipe.model, recipe.pruning.model_dump_json()), lambda: RunContext(recipe).budget)

    def _config(self, recipe: Recipe) -> Any:
        return self.once(("config", recipe.model), lambda: load_config(recipe.model.path, recipe.model.revision))

    def _amounts(self, recipe: Recipe) -> DataSizes:
        data = recipe.finetuning.model_dump_json(include={"max_length", "examples", "data"})
        key = recipe.task.model_dump_json(), recipe.calibration.model_dump_json(), data, recipe.evaluation.model_dump_json()
        return self.once(("amounts", *key), lambda: data_sizes(recipe))

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` returns, made once for a key, also for other machines (`on`)."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def assumptions(self) -> list[str]:
        """Whatever the recipe."""
        said = [
            f"memory: {1 - USABLE:.0%} of every GPU and host is left to CUDA, the system and fragments",
            f"disk: {DISK / 1e9:.0f} GB/s",
        ]
        if self.machine.gpu:
            gpu = self.machine.gpu
            said.append(
                f"time: {UTILISATION:.0%} of {gpu.name}'s {gpu.flops / 1e12:,.0f} TFLOP/s; while generating, "
                f"{BANDWIDTH_SHARE:.0%} of its {gpu.bandwidth / 1e12:.2f} TB/s if that is slower"
            )
        elif self.machine.gpus:
            said.append("time: not estimated, for the kind of GPU is not known (--gpu h100)")
        return said


def _keeping(recipe: Recipe, keep: int, before: list[int]) -> Recipe:
    """The recipe that prunes to `keep` experts, after rounds that leave `before`."""
    changes = {"keep": keep, "schedule": [*before, keep] if before else None}
    return recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update=changes)})


def _lengths(data: DataSizes) -> str:
    if all(amount.measured for amount in (data.calibration, data.training, data.evaluation)):
        return "lengths: those of a sample of the data"
    return "lengths: max_length tokens for every example, an upper bound, where data or tokenizer are not on this machine"
