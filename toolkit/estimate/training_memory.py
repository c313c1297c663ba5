"""Bytes per rank that fine-tuning holds under DeepSpeed: what of weights, gradients and optimizer is whole, partitioned, or
on the host.

Read from the optimizers of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py, fp16/unfused_optimizer.py), and
checked against the tensors that it makes (tests/estimate/test_training_memory.py). Under bfloat16 or float16, every stage keeps
a float32 master copy of the weights, and AdamW's two states are float32.

With P trained parameters, N ranks, b bytes per weight and s bytes of optimizer state per parameter (frozen weights come on top,
partitioned at stage 3):

    stage       weights   gradients   master copy              states
    0           b P       b P         4 P, none if b = 4       s P
    1           b P       b P         4 P / N                  s P / N
    2           b P       b P / N     4 P / N                  s P / N
    3           b P / N   b P / N     4 P / N                  s P / N
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.runtime.errors import PollardError

# Bytes of state per parameter; the 8-bit ones keep a float32 maximum for every 256 numbers
STATE_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_bnb_8bit": 2 + 8 / 256, "adamw_8bit": 2 + 8 / 256,
    "paged_adamw_32bit": 8.0, "paged_adamw_8bit": 2 + 8 / 256, "adagrad": 4.0, "lion_32bit": 4.0, "lion_8bit": 1 + 4 / 256,
    "sgd": 0.0,
}  # fmt: skip
# DeepSpeed's defaults, in numbers of parameters (deepspeed/runtime/zero/config.py)
BUCKET, SUB_GROUP, LIVE_PARAMETERS = int(5e8), int(1e9), int(1e9)


@dataclass(frozen=True)
class TrainingModel:
    """A model in training, and how much of it is trained."""

    parameters: int
    hidden_size: int
    largest_layer: int  # parameters of the largest decoder layer
    trained: int  # parameters; adapters are not among `parameters`
    frozen_bytes: int  # of the weights that are not trained
    whole_on_gpu: bool = False  # frozen weights lie whole on every GPU, where they are quantized, whatever the ZeRO stage
    saves_frozen: bool = False  # the trainer's checkpoints hold frozen weights, too


@dataclass(frozen=True)
class ZeroSettings:
    """The `zero_optimization` section of a DeepSpeed configuration, as far as it decides memory. Sizes are parameters."""

    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int | None = None  # None: "auto", the hidden size squared
    contiguous_gradients: bool = True
    overlap_comm: bool = False
    live_parameters: int = LIVE_PARAMETERS
    sub_group: int = SUB_GROUP

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ZeroSettings":
        """Of a whole DeepSpeed configuration."""
        zero = config.get("zero_optimization", {})
        stage, bucket = int(zero.get("stage", 0)), zero.get("reduce_bucket_size", BUCKET)

        def offloaded(key: str) -> bool:
            return (zero.get(key) or {}).get("device", "none") != "none"

        def number(key: str, default: int) -> int:
            return default if zero.get(key, "auto") == "auto" else int(zero[key])

        return cls(
            stage=stage,
            offload_optimizer=offloaded("offload_optimizer") and stage > 0,
            offload_weights=offloaded("offload_param") and stage == 3,
            bucket=None if bucket == "auto" else int(bucket),
            contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
            overlap_comm=bool(zero.get("overlap_comm")),
            live_parameters=number("stage3_max_live_parameters", LIVE_PARAMETERS),
            sub_group=number("sub_group_size", SUB_GROUP),
        )


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per rank that fine-tuning holds."""

    gpu: dict[str, int]  # part -> bytes, held from one step to the next
    step: int  # bytes on the GPU on top, while the optimizer steps
    host: int  # bytes of RAM


def state_bytes(optimizer: str) -> float:
    """Bytes of optimizer state per trained parameter. Raises PollardError for an optimizer that is not in `STATE_BYTES`."""
    if optimizer not in STATE_BYTES:
        raise PollardError(
            f"finetuning.trainer.optim: how much memory {optimizer} takes is not known here. Known: {', '.join(STATE_BYTES)}.",
            code="estimate.unknown-optimizer",
        )
    return STATE_BYTES[optimizer]


def training_memory(
    model: TrainingModel, zero: ZeroSettings, ranks: int, weight: int, optimizer: str, gpu: bool = True
) -> TrainingMemory:
    """All but the activations. `weight`: bytes of a weight while training (2 for bfloat16 and float16).

    A GPU reserves DeepSpeed's buckets whole; in RAM (`gpu` False) pages that nothing is written to take no room.
    """
    stage, trained = zero.stage, model.trained
    part = -(-trained // ranks)
    frozen = -(-model.frozen_bytes // ranks) if stage == 3 and not model.whole_on_gpu else model.frozen_bytes
    weights, gradients = (part if stage == 3 else trained), (part if stage >= 2 else trained)
    optimized = part if stage else trained
    without_master = weight == 4 and stage == 0
    states = int(state_bytes(optimizer) * optimized)
    master = 0 if without_master else 4 * optimized
    held = {
        "weights": 0 if zero.offload_weights and not model.whole_on_gpu else weight * weights + frozen,
        "gradients": 0 if zero.offload_optimizer else weight * gradients,
        "optimizer": 0 if zero.offload_optimizer else master + states,
        "buckets": weight * _buckets(zero, trained, model.hidden_size, gpu),
        "gathered layers": weight * _gathered(zero, model),
    }
    # The step makes float32 gradients of what it updates at once, and AdamW a temporary as large
    at_once = min(optimized, zero.sub_group) if stage == 3 else optimized
    step = 0 if zero.offload_optimizer else 4 * at_once * (1 if without_master else 2)
    host = 0
    if zero.offload_optimizer:  # float32 gradients; in the training dtype those that arrive (3) or weights that leave (1, 2)
        host += master + states + 4 * part + weight * part
    if zero.offload_weights:
        host += weight * part + -(-model.frozen_bytes // ranks)
    return TrainingMemory(held, step, host)


def _buckets(zero: ZeroSettings, parameters: int, hidden_size: int, gpu: bool) -> int:
    """Numbers in the buffers through which gradients are sent."""
    bucket = hidden_size**2 if zero.bucket is None else zero.bucket
    if zero.stage == 0 or not gpu:
        bucket = min(bucket, parameters)
    if zero.stage == 0:
        return bucket
    if not zero.contiguous_gradients:
        return 0
    return bucket * (2 if zero.stage < 3 and zero.overlap_comm else 1)


def _gathered(zero: ZeroSettings, model: TrainingModel) -> int:
    """Parameters that ZeRO 3 holds whole at a time: as many as it may, and the layer at work in any case."""
    return min(model.parameters, max(zero.live_parameters, model.largest_layer)) if zero.stage == 3 else 0


def checkpoint_bytes(trained: int, stage: int, weight: int, optimizer: str) -> int:
    """Bytes on disk of one of the trainer's checkpoints, over all ranks: what DeepSpeed resumes from (weights except under
    stage 3, master copy, optimizer states) of the trained parameters."""
    states = int(state_bytes(optimizer) * trained)
    master = 0 if weight == 4 and stage == 0 else 4 * trained
    return (0 if stage == 3 else weight * trained) + master + states
