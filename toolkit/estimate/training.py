"""Bytes per rank that fine-tuning holds under DeepSpeed: what of weights, gradients and optimizer is whole, partitioned, or
on the host.

Read from DeepSpeed 0.19's own optimizers (runtime/zero/stage_1_and_2.py, stage3.py, fp16/unfused_optimizer.py), and
checked against the tensors that it makes (tests/estimate/test_training.py). Under bfloat16 or float16, every stage keeps
a float32 master copy of the weights, and AdamW's two states are float32.

With P trained parameters, N ranks, b bytes per weight and s bytes of optimizer state per parameter (frozen weights are
held beside them, partitioned at stage 3):

    stage       weights   gradients   master copy              states
    0           b P       b P         4 P, none if b = 4       s P
    1           b P       b P         4 P / N                  s P / N
    2           b P       b P / N     4 P / N                  s P / N
    3           b P / N   b P / N     4 P / N                  s P / N
"""

from dataclasses import dataclass
from typing import Any

from toolkit.runtime.errors import PollardError

# Bytes of state per parameter; the 8-bit ones keep a float32 maximum for every 256 numbers
STATE_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_bnb_8bit": 2 + 8 / 256, "adamw_8bit": 2 + 8 / 256,
    "paged_adamw_32bit": 8.0, "paged_adamw_8bit": 2 + 8 / 256, "adagrad": 4.0, "lion_32bit": 4.0, "lion_8bit": 1 + 4 / 256,
    "sgd": 0.0,
}  # fmt: skip
BUCKET, SUB_GROUP, LIVE = int(5e8), int(1e9), int(1e9)  # DeepSpeed's defaults, in numbers (deepspeed/runtime/zero/config.py)


@dataclass(frozen=True)
class Trained:
    """A model in training, and what of it is trained."""

    parameters: int
    hidden_size: int
    largest_layer: int  # parameters of the largest decoder layer
    trained: int  # parameters; of adapters beside the model's own
    frozen_bytes: int  # of the weights that are held as they are
    whole: bool = False  # the frozen ones lie whole on every GPU at first, whatever the stage (they are quantized there)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per rank: on its GPU (`device`, by part), while the optimizer steps (`step`, beside the lasting parts), and in
    RAM (`host`)."""

    device: dict[str, int]
    step: int
    host: int


def state_bytes(optimizer: str) -> float:
    """Raises PollardError for an optimizer whose states are not known here."""
    if optimizer not in STATE_BYTES:
        raise PollardError(
            f"finetuning.trainer.optim: how much memory {optimizer} takes is not known here. Known: {', '.join(STATE_BYTES)}."
        )
    return STATE_BYTES[optimizer]


def training_memory(
    model: Trained, config: dict[str, Any], ranks: int, weight: int, optimizer: str, gpu: bool = True
) -> TrainingMemory:
    """`config` is DeepSpeed's; `weight` the bytes of a weight while training (2: bfloat16 or float16).

    A GPU reserves DeepSpeed's buckets whole; in RAM (`gpu` False) pages that nothing is written to take no room.
    """
    zero = config.get("zero_optimization", {})
    stage, p = int(zero.get("stage", 0)), model.trained
    part = -(-p // ranks)
    frozen = -(-model.frozen_bytes // ranks) if stage == 3 and not model.whole else model.frozen_bytes
    weights, gradients = (part if stage == 3 else p), (part if stage >= 2 else p)
    optimized = part if stage else p
    away = _offloaded(zero, "offload_optimizer") and stage > 0
    weights_away = _offloaded(zero, "offload_param") and stage == 3
    shares_weights = weight == 4 and stage == 0
    states = int(state_bytes(optimizer) * optimized)
    master = 0 if shares_weights else 4 * optimized
    device = {
        "weights": 0 if weights_away and not model.whole else weight * weights + frozen,
        "gradients": 0 if away else weight * gradients,
        "optimizer": 0 if away else master + states,
        "buckets": weight * _buckets(zero, stage, p, model.hidden_size, gpu),
        "gathered layers": weight * _gathered(zero, stage, model),
    }
    # The step makes float32 gradients of what it updates at once, and AdamW a temporary as large
    at_once = min(optimized, int(zero.get("sub_group_size", SUB_GROUP))) if stage == 3 else optimized
    step = 0 if away else 4 * at_once * (1 if shares_weights else 2)
    host = 0
    if away:  # float32 gradients, and those that arrive (stage 3) or weights that leave (1 and 2) in the training dtype
        host += master + states + 4 * part + weight * part
    if weights_away:
        host += weight * part + -(-model.frozen_bytes // ranks)
    return TrainingMemory(device, step, host)


def _offloaded(zero: dict[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"


def _buckets(zero: dict[str, Any], stage: int, parameters: int, hidden_size: int, gpu: bool) -> int:
    """Numbers in the buffers through which gradients are sent."""
    bucket = _number(zero, "reduce_bucket_size", BUCKET, hidden_size**2)
    if stage == 0 or not gpu:
        bucket = min(bucket, parameters)
    if stage == 0:
        return bucket
    if not zero.get("contiguous_gradients", True):
        return 0
    return bucket * (2 if stage < 3 and zero.get("overlap_comm") else 1)


def _gathered(zero: dict[str, Any], stage: int, model: Trained) -> int:
    """Parameters that ZeRO 3 holds whole at a time: what it may, and the layer at work in any case."""
    if stage < 3:
        return 0
    return min(model.parameters, max(_number(zero, "stage3_max_live_parameters", LIVE, LIVE), model.largest_layer))


def _number(zero: dict[str, Any], key: str, default: int, auto: int) -> int:
    value = zero.get(key, default)
    return auto if value == "auto" else int(value)


def engine_bytes(trained: int, stage: int, weight: int, optimizer: str) -> int:
    """Bytes on disk of one of the trainer's checkpoints, over all ranks: what DeepSpeed goes on from (weights except under
    stage 3, master copy, states) of the parameters that are trained."""
    states = int(state_bytes(optimizer) * trained)
    master = 0 if weight == 4 and stage == 0 else 4 * trained
    return (0 if stage == 3 else weight * trained) + master + states
