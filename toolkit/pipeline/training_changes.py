"""What to change of a fine-tuning that does not fit."""

from collections.abc import Iterable, Iterator

from toolkit.estimate import Machine, TrainerSettings
from toolkit.pipeline.recipe_on_machine import trainer_settings
from toolkit.pipeline.relief import Change, change, half, halves
from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS


class LighterTraining:
    """Changes of `finetuning` that take less memory."""

    def __init__(self, recipe: Recipe, machine: Machine) -> None:
        key, zero, trainer = "finetuning.trainer.", recipe.finetuning.zero, trainer_settings(recipe, machine.gpus > 0)
        self.batches = [_with_batch(trainer, size) for size in halves(trainer.micro_batch)]
        self.checkpointing = [] if trainer.checkpointing else [change(key + "gradient_checkpointing", True)]
        several = isinstance(zero, int) and machine.ranks > 1
        self.stages = [change("finetuning.zero", stage) for stage in range(int(zero) + 1, 4)] if several else []
        offloaded = zero == "3-offload"
        self.offload = [change("finetuning.zero", "3-offload")] if machine.gpus and not offloaded else []
        # bitsandbytes' optimizers work on the GPU: not with an offloaded one
        eight_bit = not offloaded and "8bit" not in trainer.optimizer
        self.eight_bit = [change(key + "optim", "adamw_bnb_8bit")] if eight_bit else []
        self.methods = [change("finetuning.method", method) for method in METHODS[recipe.finetuning.method].lighter]

    @property
    def single(self) -> list[Change]:
        """One thing at a time."""
        return [*self.checkpointing, *self.batches, *self.stages, *self.eight_bit, *self.offload, *self.methods]

    @property
    def combined(self) -> list[Change]:
        """One on top of the other: the smallest batch, with everything else."""
        partitioned = self.stages[-1:]
        rest = [*self.stages, *(a | b for a in partitioned for b in self.eight_bit), *self.offload]
        return [*(self.smallest_batch | each for each in rest), *self.lightest]

    @property
    def lightest(self) -> list[Change]:
        """The smallest batch with another method, also in parts and offloaded."""
        last = [*self.methods, *(a | b for a in self.methods for b in (*self.stages[-1:], *self.offload))]
        return [self.smallest_batch | each for each in last]

    @property
    def smallest_batch(self) -> Change:
        smallest = Change()
        for each in [*self.checkpointing, *self.batches[-1:]]:
            smallest |= each
        return smallest

    def changes(self) -> list[Change]:
        return [*self.single, *self.combined]

    def with_smaller_models(self, smaller: Iterable[Change]) -> Iterator[Change]:
        """`smaller`: changes that prune to a smaller model."""
        for model in smaller:
            yield model
            yield from (model | each for each in [*self.single, *self.lightest])


def _with_batch(trainer: TrainerSettings, size: int) -> Change:
    """Micro-batches of `size`, and as many more of them per step."""
    key, more = "finetuning.trainer.", trainer.accumulation * trainer.micro_batch // size
    return Change({key + "per_device_train_batch_size": size, key + "gradient_accumulation_steps": more})


def smaller_training(recipe: Recipe) -> str:
    """The overrides to try where a GPU's memory is full while training."""
    trainer = trainer_settings(recipe, on_gpu=True)
    partitioned = "" if str(recipe.finetuning.zero).startswith("3") else ", or finetuning.zero=3 on several GPUs"
    if trainer.micro_batch > 1:
        return (
            f"finetuning.trainer.per_device_train_batch_size={half(trainer.micro_batch)} "
            f"finetuning.trainer.gradient_accumulation_steps={2 * trainer.accumulation} (the same training){partitioned}"
        )
    return f"finetuning.method=lora{partitioned or ', or finetuning.zero=3-offload'}"
