"""The stages recover and control: memory, steps, operations and checkpoints of fine-tuning."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from toolkit.estimate.data_sizes import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.stage_estimate import DISK, StageEstimate, on_machine
from toolkit.estimate.trained import trained_by
from toolkit.estimate.training import TrainingMemory, engine_bytes, training_memory
from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS
from toolkit.recovery.teacher import TOKENS_AT_ONCE
from toolkit.recovery.trainer_defaults import trainer_defaults
from toolkit.runtime.zero import deepspeed_config

# TRL never builds the logits of a whole batch: it projects tiles of 4,096 tokens by 32,768 words, in float32
TILE_TOKENS, TILE_WORDS = 4096, 32768
# The distilled loss has its logits whole (those of the batch, those that count, and a gradient), and a part of them in
# float32, this many times at the fullest moment (measured: tests/estimate/test_working_memory.py)
DISTILLED_COPIES = 6


@dataclass(frozen=True)
class Trainer:
    """What of SFTConfig decides memory and steps."""

    settings: dict[str, Any]

    @property
    def micro_batch(self) -> int:
        return int(self.settings["per_device_train_batch_size"])

    @property
    def accumulation(self) -> int:
        return int(self.settings.get("gradient_accumulation_steps", 1))

    @property
    def checkpointing(self) -> bool:
        return bool(self.settings.get("activation_checkpointing", self.settings["gradient_checkpointing"]))

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.settings["bf16"] else torch.float16 if self.settings["fp16"] else torch.float32

    def steps(self, examples: int | None, ranks: int) -> int | None:
        most = int(self.settings.get("max_steps", -1))
        if most > 0:
            return most
        if examples is None:
            return None
        batches = math.ceil(examples / (self.micro_batch * ranks))
        return math.ceil(float(self.settings["num_train_epochs"]) * max(1, math.ceil(batches / self.accumulation)))

    def checkpoints(self, steps: int | None) -> int:
        """How many lie on the disk at most: one more than are kept, while the next is written."""
        kind = str(self.settings["save_strategy"])
        if kind == "no":
            return 0
        every = float(self.settings.get("save_steps", 500))
        if kind == "steps":
            number = math.ceil(1 / every) if every < 1 else math.ceil((steps or 0) / every)
        else:
            number = math.ceil(float(self.settings["num_train_epochs"]))
        return min(number, int(self.settings.get("save_total_limit") or number) + 1)


def trainer_of(recipe: Recipe, machine: Machine) -> Trainer:
    return Trainer(trainer_defaults(machine.gpus > 0, recipe) | recipe.finetuning.trainer)


def persistent_memory(recipe: Recipe, machine: Machine, pruned: ModelNumbers) -> TrainingMemory:
    """All but the activations: quick, and enough to tell that something cannot fit."""
    trainer, config = trainer_of(recipe, machine), deepspeed_config(recipe.finetuning.zero)
    optimizer = str(trainer.settings["optim"])
    return training_memory(trained_by(recipe, pruned), config, machine.ranks, pruned.weight_bytes, optimizer, machine.gpus > 0)


def distilled_bytes(tokens: int, vocabulary: int, weight: int) -> int:
    """Of the distilled loss of so many completion tokens, forward and backward, in a model with weights of `weight` bytes."""
    return vocabulary * (3 * weight * tokens + 4 * DISTILLED_COPIES * min(tokens, TOKENS_AT_ONCE))


def estimate_recover(
    recipe: Recipe, machine: Machine, pruned: ModelNumbers, data: DataSize, name: str = "recover"
) -> StageEstimate:
    """`pruned` in the dtype that is trained in (of the control: the original)."""
    trainer, ranks, weight = trainer_of(recipe, machine), machine.ranks, pruned.weight_bytes
    optimizer, memory = str(trainer.settings["optim"]), persistent_memory(recipe, machine, pruned)
    stage = int(deepspeed_config(recipe.finetuning.zero).get("zero_optimization", {}).get("stage", 0))
    working = pruned.working(trainer.micro_batch, data.longest, train=True, checkpointing=trainer.checkpointing)
    tokens = trainer.micro_batch * data.longest
    if recipe.finetuning.teacher:
        loss = distilled_bytes(tokens, pruned.vocabulary, weight)
    else:
        loss = 4 * (pruned.head + tokens * pruned.hidden_size + min(tokens, TILE_TOKENS) * min(pruned.vocabulary, TILE_WORDS))
    gpu = memory.device | {"activations": max((working or 0) + loss, memory.step)}
    method = trained_by(recipe, pruned)
    # ZeRO 0 to 2: every rank reads the whole model before it goes to the GPU. 3: rank 0 gathers it, to save it.
    # qlora: the ranks read it in turns.
    whole = pruned.bytes * (machine.ranks_per_node if stage < 3 and not method.whole else 1)
    host = {"offloaded": machine.ranks_per_node * memory.host, "model": whole if machine.gpus or stage == 3 else 0}
    steps, mean = trainer.steps(data.examples, ranks), data.mean
    seen = None if steps is None else steps * trainer.micro_batch * trainer.accumulation * ranks * mean
    # Forward 2, backward 2 for the inputs and 2 for the weights (frozen ones need none), forward again with checkpointing
    per_weight = (2 if trainer.checkpointing else 0) + (6 if method.trained == pruned.parameters else 4)
    flops = None if seen is None else per_weight * pruned.active * seen
    saved = engine_bytes(method.trained, stage, weight, optimizer)
    if METHODS[recipe.finetuning.method].saves_frozen_weights:
        saved += method.frozen_bytes
    per_step = trainer.micro_batch * trainer.accumulation * ranks
    notes = []
    if working is None:
        notes.append("activations are not counted: this family's code looks at tensors' contents")
    if memory.host:
        notes.append("offloaded: the optimizer runs on the CPU and everything crosses PCIe; the time counts neither")
    on_gpu, in_ram = on_machine(machine, gpu, host)
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{'unknown' if steps is None else f'{steps:,}'} steps of {per_step:,} examples ({trainer.micro_batch} x "
        f"{trainer.accumulation} x {ranks} ranks), {recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}, {optimizer}, "
        f"{str(trainer.dtype).removeprefix('torch.')}{', checkpointing' if trainer.checkpointing else ''}",
        disk=pruned.bytes + trainer.checkpoints(steps) * saved,
        flops=flops,
        seconds=machine.seconds(flops, pruned.bytes / DISK),
        notes=tuple(notes),
    )
