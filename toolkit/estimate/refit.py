"""Refit: memory, operations and time, from the configurations of two models alone.

Both models go over all tokens side by side, one decoder layer at a time. Of each layer, the channels Z that its refit weights are
multiplied with are computed, group of channels by group; ZᵀZ and ZᵀR are summed, solved for every penalty, and the solutions
compared on held-out tokens. Between two such turns what makes the experts' channels takes a few steps of conjugate gradients,
each a pass over the tokens.

Shape legend: T tokens, N channels of a group, W width of a unit, V numbers that an expert's channels are made of, H hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.stage_estimate import DISK_BANDWIDTH, StageEstimate, count, memory_on

ORIGINAL_PASSES, CUT_PASSES = 1, 3  # of every layer; the cut model's before it is solved, to measure what came of it, and on
WIDE_SHARE = 1 / 16  # of a GPU's speed with bfloat16, reached with float32 and float64, in which the sums are made
FACTORS = 2  # copies of a Gram matrix on a GPU while it is factored; on a CPU it is factored in place
FLOAT32, FLOAT64 = 4, 8  # bytes
STATE = 6  # matrices as large as a group's projections, in float32: gradient, direction, its image, steepest, change, old weights
STEP_PRODUCTS, START_PRODUCTS = 5, 3  # of V · H per token that an expert has: one computes what its channels are made of


class RefitUnit(NamedTuple):
    """An expert or a linear layer whose weights are refit. `share`: of the tokens, those that have its channels. `numbers`: V, of
    an expert."""

    width: int
    share: float
    numbers: int = 0


@dataclass(frozen=True)
class RefitSize:
    """What is refit, and how. `layers`: of each its groups of units, every group with a Gram matrix of its own; `inputs`: numbers
    that are kept per token and layer, at most, to compute channels from."""

    layers: Sequence[Sequence[Sequence[RefitUnit]]]
    inputs: int
    penalties: int
    sweeps: int  # over the groups of a layer, where there are several
    held_out: float  # share of the tokens
    chunk_tokens: int  # whose channels are in memory at a time
    rounds: int = 0  # of what makes the experts' channels; after each, the groups are solved once more
    steps: int = 0  # of conjugate gradients in each

    @property
    def largest_group(self) -> int:
        """N at most."""
        return max((channels_of(group) for layer in self.layers for group in layer), default=0)

    @property
    def turns(self) -> Iterator[Sequence[RefitUnit]]:
        """Every group, as often as it is solved."""
        for layer in self.layers:
            for group in layer:
                yield from [group] * (1 + self.rounds) * (self.sweeps if len(layer) > 1 else 1)

    @property
    def numbers(self) -> float:
        """Σ V of all experts, each times its share of the tokens."""
        return sum(unit.share * unit.numbers for layer in self.layers for group in layer for unit in group)

    @property
    def most_numbers(self) -> int:
        """Σ V of a group at most."""
        return max((sum(unit.numbers for unit in group) for layer in self.layers for group in layer), default=0)


class RefitWork(NamedTuple):
    """Operations: in the model's own numbers, in wide ones, and of solving, which rank 0 does alone."""

    narrow: float
    wide: float
    solving: float


def channels_of(group: Sequence[RefitUnit]) -> int:
    """N."""
    return sum(unit.width for unit in group)


def group_work(group: Sequence[RefitUnit], tokens: float, hidden: int, size: RefitSize) -> RefitWork:
    """Once. ZᵀZ is symmetric: each unit is multiplied with those before it and itself, on the tokens that it has. A factorisation
    takes N³ / 3, its solution 2 N² H."""
    all_channels, before, sums, computing = channels_of(group), 0, 0.0, 0.0
    for unit in group:
        before += unit.width
        sums += 2.0 * (1 - size.held_out) * tokens * unit.share * unit.width * (before + hidden)
        computing += 2.0 * tokens * unit.share * unit.width * 2 * hidden  # gate and up projection
    comparing = size.penalties * 2.0 * size.held_out * tokens * all_channels * hidden
    updating = 2.0 * tokens * all_channels * hidden
    solving = size.penalties * (all_channels**3 / 3 + 2.0 * all_channels**2 * hidden)
    return RefitWork(2 * computing, sums + comparing + updating, solving)  # for the sums, and for what they left


def estimate_refit(
    name: str, machine: Machine, models: tuple[ModelSize, ModelSize], data: DataSize, batch: int, size: RefitSize
) -> StageEstimate:
    """`models`: the one that was cut, and what is left of it. Per rank in memory: the embeddings and two layers of each model
    (one at work, one arriving), one system of equations with its solutions, and the channels of some tokens; in RAM of all tokens
    both models' hidden states, what went into the weights, and what the layer lacks."""
    original, cut = models
    weight, hidden, unknowns = original.weight_bytes, original.hidden_size, size.largest_group
    tokens = data.tokens or 0
    matrices = 1 + FACTORS * bool(machine.gpus)
    per_token = weight * size.inputs + 2 * FLOAT32 * hidden
    gpu = {
        "weights": weight * sum(model.embeddings + 2 * model.largest_layer for model in models),
        "activations": original.activations(batch, data.longest) or 0,
        "equations": unknowns * (FLOAT64 * (matrices * unknowns + 2 * hidden) + weight * size.penalties * hidden),
        "projections": FLOAT32 * STATE * size.most_numbers * hidden,
        "channels": FLOAT32 * size.chunk_tokens * unknowns,
    }
    host = {"hidden states": 2 * weight * hidden * tokens // machine.nodes, "tokens": per_token * tokens // machine.nodes}
    flops = seconds = None
    if data.tokens is not None:
        work = [group_work(group, tokens, hidden, size) for group in size.turns]
        narrow, wide, solving = (sum(part) for part in zip(*work, strict=True))
        products = size.rounds * (size.steps * STEP_PRODUCTS + START_PRODUCTS)
        wide += products * 2.0 * tokens * size.numbers * hidden
        passes = ORIGINAL_PASSES * (original.active - original.head) + CUT_PASSES * (cut.active - cut.head)
        narrow += 2.0 * tokens * passes
        flops = narrow + wide + solving
        reading = (original.bytes + 2 * cut.bytes) / DISK_BANDWIDTH
        alone = machine.seconds(solving / WIDE_SHARE, 0.0, gpus=1)
        seconds = machine.seconds(narrow + wide / WIDE_SHARE, reading + (alone or 0.0))
    on_gpu, in_ram = memory_on(machine, gpu, host)
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{count(data.examples)} examples, {count(data.tokens)} tokens, no gradients",
        disk=cut.bytes,
        flops=flops,
        seconds=seconds,
        notes=(f"systems of {unknowns:,} unknowns are solved in float64, taken for {WIDE_SHARE:.2g} of a GPU's speed",),
    )
