"""Refit: memory, operations and time, from the configurations of two models alone.

Both models go over all tokens side by side, one decoder layer at a time. Of each layer the channels that its refit modules
multiply are collected for the tokens that count; their sums ZᵀZ and ZᵀR are made group by group and solved for every penalty.

Shape legend: T tokens that count, N channels of a group, H hidden size.
"""

from dataclasses import dataclass
from typing import NamedTuple

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.stage_estimate import DISK_BANDWIDTH, StageEstimate, count, memory_on
from toolkit.moe import block_width, find_blocks

ORIGINAL_PASSES, CUT_PASSES = 1, 2  # of the cut model's layer one before it is solved, one after
HOST_FLOPS = 1e12  # float64 per second and node: where the systems of equations are solved
FLOAT32, FLOAT64 = 4, 8  # bytes


@dataclass(frozen=True)
class RefitSolver:
    """How a layer's channels are solved for."""

    penalties: int
    group_channels: int  # of one Gram matrix, at most
    sweeps: int  # over the groups, where there are several


class Channels(NamedTuple):
    """Of one layer's refit modules: all unknowns per output number, and those that one token has."""

    all: int
    active: int


class LayerWork(NamedTuple):
    """Operations of one layer: where the tensors are, and on the host."""

    products: float
    solving: float


def channels_of(model: ModelSize) -> list[Channels]:
    """Of every layer with an MoE block: those of its experts."""
    blocks = find_blocks(model.model)
    return [Channels(block.expert_count * block_width(block), block.experts_per_token * block_width(block)) for block in blocks]


def layer_work(channels: Channels, tokens: float, hidden: int, solver: RefitSolver) -> LayerWork:
    """Of N channels in a group a token has `active` · N / `all`: its products with all N of the group are the Gram's, those with
    H numbers the right-hand side's. A factorisation takes N³ / 3, and 2 N² H follow for the solution."""
    groups = -(-channels.all // solver.group_channels)
    size = channels.all / groups
    active = channels.active / groups
    sweeps = solver.sweeps if groups > 1 else 1
    products = 2.0 * tokens * active * (size + hidden)
    solving = solver.penalties * (size**3 / 3 + 2.0 * size**2 * hidden)
    return LayerWork(sweeps * groups * products, sweeps * groups * solving)


def estimate_refit(
    name: str, machine: Machine, models: tuple[ModelSize, ModelSize], data: DataSize, batch: int, solver: RefitSolver
) -> StageEstimate:
    """`models`: the one that was cut, and what is left of it. Per rank in memory are the embeddings, two layers of each model
    (one at work, one arriving), and one group's Gram matrix; in RAM both models' hidden states of the rank's tokens, and of those
    that count what went into the modules and what the layer's output lacks, in float32."""
    original, cut = models
    weight, hidden, channels = original.weight_bytes, original.hidden_size, channels_of(cut)
    largest = min(max(each.all for each in channels), solver.group_channels)
    layers = original.embeddings + 2 * original.largest_layer + 2 * cut.largest_layer
    gpu = {
        "weights": weight * layers,
        "activations": original.activations(batch, data.longest) or 0,
        "gram": FLOAT64 * largest * (largest + hidden),
    }
    counted = round((data.examples or 0) * data.completion_tokens)
    host = {
        "hidden states": 2 * weight * hidden * (data.tokens or 0) // machine.nodes,
        "refit tokens": 2 * FLOAT32 * hidden * counted // machine.nodes,
    }
    flops = seconds = None
    if data.tokens is not None:
        work = [layer_work(each, counted, hidden, solver) for each in channels]
        passes = ORIGINAL_PASSES * (original.active - original.head) + CUT_PASSES * (cut.active - cut.head)
        solving = sum(each.solving for each in work)
        products = 2.0 * data.tokens * passes + sum(each.products for each in work)
        flops = products + solving
        seconds = machine.seconds(products, (original.bytes + 2 * cut.bytes) / DISK_BANDWIDTH + solving / HOST_FLOPS)
    on_gpu, in_ram = memory_on(machine, gpu, host)
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{count(data.examples)} examples, {count(counted if data.examples else None)} tokens that count, no gradients",
        disk=cut.bytes,
        flops=flops,
        seconds=seconds,
        notes=(f"systems of {largest:,} unknowns are solved on the host, at {HOST_FLOPS / 1e12:.0f} TFLOP/s in float64",),
    )
