"""Fine-tuning, of the pruned model or of the control: memory, steps, operations and checkpoints."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.stage_estimate import DISK_BANDWIDTH, StageEstimate, memory_on
from toolkit.estimate.training_memory import TrainingMemory, TrainingModel, ZeroSettings, checkpoint_bytes, training_memory
from toolkit.runtime.zero import deepspeed_config

# TRL never builds the logits of a whole batch: it projects tiles of 4,096 tokens by 32,768 words, in float32
TILE_TOKENS, TILE_WORDS = 4096, 32768
# The distilled loss has its logits whole (those of the batch, those that count, and a gradient), and a part of them in
# float32, this many times at the fullest moment (measured: tests/estimate/test_estimated_model_size.py)
DISTILLED_COPIES = 6


@dataclass(frozen=True)
class TrainerSettings:
    """The fields of TRL's SFTConfig that decide memory and steps."""

    fields: dict[str, Any]  # of SFTConfig: the defaults of the toolkit and what the recipe sets

    @property
    def micro_batch(self) -> int:
        """Examples per rank and forward pass."""
        return int(self.fields["per_device_train_batch_size"])

    @property
    def accumulation(self) -> int:
        """Micro-batches per step."""
        return int(self.fields.get("gradient_accumulation_steps", 1))

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return bool(self.fields.get("activation_checkpointing", self.fields["gradient_checkpointing"]))

    @property
    def optimizer(self) -> str:
        return str(self.fields["optim"])

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.fields["bf16"] else torch.float16 if self.fields["fp16"] else torch.float32

    def examples_per_step(self, ranks: int) -> int:
        return self.micro_batch * self.accumulation * ranks

    def steps(self, examples: int | None, ranks: int) -> int | None:
        """None where the number of examples is not known."""
        limit = int(self.fields.get("max_steps", -1))
        if limit > 0:
            return limit
        if examples is None:
            return None
        batches = math.ceil(examples / (self.micro_batch * ranks))
        return math.ceil(float(self.fields["num_train_epochs"]) * max(1, math.ceil(batches / self.accumulation)))

    def checkpoints(self, steps: int | None) -> int:
        """How many lie on the disk at most: one more than are kept, while the next is written."""
        strategy = str(self.fields["save_strategy"])
        if strategy == "no":
            return 0
        every = float(self.fields.get("save_steps", 500))
        if strategy == "steps":
            number = math.ceil(1 / every) if every < 1 else math.ceil((steps or 0) / every)
        else:
            number = math.ceil(float(self.fields["num_train_epochs"]))
        return min(number, int(self.fields.get("save_total_limit") or number) + 1)


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned. `model` is in the dtype that is trained in."""

    model: ModelSize
    trained: TrainingModel
    trainer: TrainerSettings
    method: str  # finetuning.method
    zero: int | str  # finetuning.zero
    distilled_tokens: int | None = None  # with a teacher: completion tokens whose loss is computed at once
    all_experts: bool = False  # finetuning.router_gradient: all

    @cached_property
    def zero_settings(self) -> ZeroSettings:
        """Raises PollardError for a DeepSpeed configuration that cannot be read."""
        return ZeroSettings.of(deepspeed_config(self.zero))


def persistent_memory(tuning: FineTuning, machine: Machine) -> TrainingMemory:
    """All but the activations: quick, and enough to know that something cannot fit."""
    trainer, on_gpu = tuning.trainer, machine.gpus > 0
    weight = tuning.model.weight_bytes
    return training_memory(tuning.trained, tuning.zero_settings, machine.ranks, weight, trainer.optimizer, on_gpu)


def cannot_fit(tuning: FineTuning, machine: Machine) -> bool:
    """Whether fine-tuning does not fit even without activations; quick."""
    memory = persistent_memory(tuning, machine)
    gpu, host = memory_on(machine, memory.gpu, {"offloaded": machine.ranks_per_node * memory.host})
    return bool(StageEstimate("", "", gpu, host).lacks(machine))


def distilled_bytes(tokens: int, vocabulary: int, weight: int, tokens_at_once: int) -> int:
    """Bytes of the distilled loss of `tokens` completion tokens, forward and backward, in a model with weights of `weight`
    bytes; float32 copies of the logits are made of `tokens_at_once` tokens at a time."""
    return vocabulary * (3 * weight * tokens + 4 * DISTILLED_COPIES * min(tokens, tokens_at_once))


def estimate_finetuning(name: str, tuning: FineTuning, machine: Machine, data: DataSize) -> StageEstimate:
    """`name`: that of the stage."""
    model, trainer, trained, stage = tuning.model, tuning.trainer, tuning.trained, tuning.zero_settings.stage
    ranks, weight = machine.ranks, model.weight_bytes
    memory = persistent_memory(tuning, machine)
    activations = model.activations(trainer.micro_batch, data.longest, train=True, checkpointing=trainer.checkpointing)
    gpu = memory.gpu | {"activations": max((activations or 0) + _loss_bytes(tuning, data), memory.step)}
    # ZeRO 0 to 2: every rank reads the whole model before it goes to the GPU. 3: rank 0 gathers it, to save it.
    # Models that are whole on the GPU are read by the ranks in turns.
    whole = model.bytes * (machine.ranks_per_node if stage < 3 and not trained.whole_on_gpu else 1)
    host = {"offloaded": machine.ranks_per_node * memory.host, "model": whole if machine.gpus or stage == 3 else 0}
    steps, per_step = trainer.steps(data.examples, ranks), trainer.examples_per_step(ranks)
    trained_tokens = None if steps is None else steps * per_step * data.mean
    # Forward 2, backward 2 for the inputs and 2 for the weights (frozen ones need none), forward again with checkpointing
    per_weight = (2 if trainer.checkpointing else 0) + (6 if trained.trained == model.parameters else 4)
    inactive = model.experts - model.active_experts if tuning.all_experts else 0
    per_token = per_weight * model.active + 2 * inactive
    flops = None if trained_tokens is None else per_token * trained_tokens
    saved = checkpoint_bytes(trained.trained, stage, weight, trainer.optimizer)
    saved += trained.frozen_bytes if trained.saves_frozen else 0
    notes = []
    if activations is None:
        notes.append("activations are not counted: this family's code looks at tensors' contents")
    if tuning.all_experts:
        times = 1 + 2 * inactive / (per_weight * model.active_experts)
        notes.append(f"router_gradient all: experts compute what did not choose them, too: {times:.1f} times their operations")
    if memory.host:
        notes.append("offloaded: the optimizer runs on the CPU and everything crosses PCIe; the time counts neither")
    on_gpu, in_ram = memory_on(machine, gpu, host)
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{'unknown' if steps is None else f'{steps:,}'} steps of {per_step:,} examples ({trainer.micro_batch} x "
        f"{trainer.accumulation} x {ranks} ranks), {tuning.method}, ZeRO {tuning.zero}, {trainer.optimizer}, "
        f"{str(trainer.dtype).removeprefix('torch.')}{', checkpointing' if trainer.checkpointing else ''}",
        disk=model.bytes + trainer.checkpoints(steps) * saved,
        flops=flops,
        seconds=machine.seconds(flops, model.bytes / DISK_BANDWIDTH),
        notes=tuple(notes),
    )


def _loss_bytes(tuning: FineTuning, data: DataSize) -> int:
    """Of the language model's head and the loss of one micro-batch."""
    model, tokens = tuning.model, tuning.trainer.micro_batch * data.longest
    if tuning.distilled_tokens is not None:
        return distilled_bytes(tokens, model.vocabulary, model.weight_bytes, tuning.distilled_tokens)
    return 4 * (model.head + tokens * model.hidden_size + min(tokens, TILE_TOKENS) * min(model.vocabulary, TILE_WORDS))
