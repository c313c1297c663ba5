"""The losses of many plans, each masked, from one model that is read layer by layer: memory, operations and time."""

import math

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import USABLE, Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.stage_estimate import DISK_BANDWIDTH, StageEstimate, memory_on

WAITING_SHARE = 0.5  # of a host's memory, that hidden states may take; beyond it the plans go in groups
STATES = 2  # that wait for every token and plan: the hidden state, and the embeddings that a forward pass keeps
LOGIT_COPIES = 2  # in float32, of the tokens that the loss counts


def times_read(machine: Machine, model: ModelSize, data: DataSize, plans: int) -> int:
    """How often the checkpoint is read: once for every group of plans that there is room for."""
    room = WAITING_SHARE * USABLE * machine.cpu_memory
    return max(1, math.ceil(_waiting_bytes(machine, model, data, plans) / room))


def _waiting_bytes(machine: Machine, model: ModelSize, data: DataSize, plans: int) -> int:
    """Of the hidden states of all plans, on each node."""
    return STATES * model.weight_bytes * model.hidden_size * (data.tokens or 0) * plans // machine.nodes


def estimate_masked_losses(
    name: str, machine: Machine, model: ModelSize, data: DataSize, batch: int, plans: int
) -> StageEstimate:
    """At most: as if no plan cut anything. Per rank in memory: the embeddings and two layers (one at work, one arriving), or the
    head; the hidden states of all plans wait in RAM."""
    weight, tokens = model.weight_bytes, batch * data.longest
    layers = max(2 * model.largest_layer, model.head)
    gpu = {
        "weights": weight * (model.embeddings + layers),
        "activations": model.activations(batch, data.longest) or 0,
        "logits": model.vocabulary * (2 * weight + 4 * LOGIT_COPIES) * tokens,
    }
    waiting, groups = _waiting_bytes(machine, model, data, plans), times_read(machine, model, data, plans)
    flops = None if data.tokens is None else 2.0 * model.active * data.tokens * plans
    on_gpu, in_ram = memory_on(machine, gpu, {"hidden states": waiting // groups})
    return StageEstimate(
        name=name,
        work=f"{plans} passes over {data.examples or 'all'} dev examples",
        gpu=on_gpu,
        host=in_ram,
        flops=flops,
        seconds=machine.seconds(flops, groups * model.bytes / DISK_BANDWIDTH),
    )
