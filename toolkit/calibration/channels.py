"""The statistics of channels, which criteria of width read: how much energy each carries, and the norms of its weights.

For expert e, token t, gate weight g and channel c with value a (the input of the down projection), per block and part

    channel_energy     [E, W]   sum of g^2 a^2 over the tokens routed to e; of an MLP [W]: sum of a^2 over all tokens

and of the weights alone, once per block or MLP

    down_norm          [E, W]   norm of the channel's column of the down projection
    channel_magnitude  [E, W]   norm of its gate row, times that of its up row, times down_norm

so that down_norm^2 · channel_energy is the energy that the channel alone adds to the residual stream.

Shape legend: T tokens of a batch, R of them, P parts (prompt, completion), K experts per token, E experts, W width.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from toolkit.calibration.observer import Observer
from toolkit.calibration.vector_sums import VectorSums
from toolkit.cuts.statistics import PARTS, WEIGHTS, ChannelFacts
from toolkit.moe import (
    BlockActivations,
    ChannelGroup,
    LinearCall,
    ObservedBatch,
    channel_norms,
    expert_channels,
    tokens_by_expert,
)
from toolkit.runtime.errors import PollardError

CHUNK_NUMBERS = 2**24  # converted to float64 at a time: 128 MiB
Summand = Callable[[torch.Tensor], torch.Tensor]


class ChannelObserver(Observer):
    """Sums over the channels of `groups`: the experts' of every block, and those of the MLPs that are narrowed with them."""

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self.groups = {group.name: group for group in groups}
        self.mlps = [group for group in groups if group.experts is None]
        self.sums = VectorSums()
        self.norms: dict[str, torch.Tensor] = {}  # by parameter, float64 [E, W] or [W]

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        group, index_TK, gate_TK = self.groups[activations.block], activations.index_TK, activations.gate_TK
        for parameter in group.tensors:
            weight = activations.experts.get_parameter(parameter.rpartition(".")[2])
            if weight.ndim == 3:  # biases have no direction
                self._take_norms(group, parameter, weight)
        assert group.experts is not None
        mask_PT = part_masks(batch, gate_TK.device)
        counted_TK = (gate_TK != 0) & mask_PT.any(0).unsqueeze(1)
        energy_PEW = gate_TK.new_zeros(len(PARTS), group.experts, group.width, dtype=torch.float64)
        for expert, tokens, places in tokens_by_expert(index_TK, counted_TK, group.experts):
            channels_RW = expert_channels(activations.experts, activations.hidden_TH[tokens], expert)
            share_PR = mask_PT[:, tokens] * gate_TK[tokens, places].double().square()
            energy_PEW[:, expert] = sum_by_part(share_PR, channels_RW, torch.square)
        self._add(group, "channel_energy", energy_PEW)

    def on_linear(self, call: LinearCall, batch: ObservedBatch) -> None:
        self._take_norms(call.group, call.parameter, call.weight)
        if call.is_down:
            mask_PT = part_masks(batch, call.inputs_TX.device, len(call.inputs_TX), call.group.name)
            real = mask_PT.any(0)  # padding may hold anything
            energy_PW = sum_by_part(mask_PT[:, real].double(), call.inputs_TX[real], torch.square)
            self._add(call.group, "channel_energy", energy_PW)

    def _take_norms(self, group: ChannelGroup, parameter: str, weight: torch.Tensor) -> None:
        if parameter not in self.norms:
            self.norms[parameter] = channel_norms(weight, group.tensors[parameter])

    def _add(self, group: ChannelGroup, statistic: str, sums_P: torch.Tensor) -> None:
        self.sums.add({f"{group.name}/{statistic}/{part}": sums for part, sums in zip(PARTS, sums_P, strict=True)})

    def reduced(self) -> dict[str, torch.Tensor]:
        """The totals over all ranks, as ExpertStatistics names them; zeros where no token came. Every rank must call it."""
        for name, group in self.groups.items():
            norms = [self.norms[parameter] for parameter in group.tensors if parameter in self.norms]
            if norms:
                magnitude = torch.stack([norm.to(norms[0].device) for norm in norms]).prod(0)
                facts = {"down_norm": self.norms[group.down], "channel_magnitude": magnitude}
                self.sums.add({f"{name}/{fact}/{WEIGHTS}": values for fact, values in facts.items()})
        self.norms = {}
        return zeros(self.groups.values(), ("channel_energy",), ("down_norm", "channel_magnitude")) | self.sums.reduced()


def zeros(groups: Iterable[ChannelGroup], statistics: Sequence[str], facts: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """What statistics of channels are before any token was seen."""
    names = [*(f"{name}/{part}" for name in statistics for part in PARTS), *(f"{fact}/{WEIGHTS}" for fact in facts)]
    return {f"{group.name}/{name}": torch.zeros(shape(group), dtype=torch.float64) for group in groups for name in names}


def shape(group: ChannelGroup) -> tuple[int, ...]:
    """[E, W], or [W] of an MLP."""
    return (group.width,) if group.experts is None else (group.experts, group.width)


def channel_facts(groups: Iterable[ChannelGroup]) -> dict[str, ChannelFacts]:
    """For statistics.json: what a plan must know of the groups."""
    return {group.name: ChannelFacts(group.width, group.experts) for group in groups}


def part_masks(batch: ObservedBatch, device: torch.device, tokens: int | None = None, name: str = "") -> torch.Tensor:
    """Which tokens are prompt, which completion [P, T], bool. Raises PollardError for an MLP that was not called with the
    batch's `tokens`, so that nobody can tell its padding."""
    mask_PT = torch.stack([getattr(batch, part) for part in PARTS]).to(device)
    if tokens not in (None, mask_PT.shape[1]):
        raise PollardError(
            f"{name} processes {tokens:,} tokens of a batch of {mask_PT.shape[1]:,}: it cannot be told which are padding, so its "
            "channels cannot be observed. Leave pruning.width out.",
            code="calibration.other-tokens",
        )
    return mask_PT


def sum_by_part(share_PR: torch.Tensor, values_RW: torch.Tensor, summand: Summand) -> torch.Tensor:
    """Σ_R share · summand(values) per part [P, W], in float64."""
    size = max(1, CHUNK_NUMBERS // values_RW.shape[1])
    chunks = zip(share_PR.split(size, 1), values_RW.split(size), strict=True)
    return torch.stack([share @ summand(values.double()) for share, values in chunks]).sum(0)
