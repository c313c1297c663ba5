"""Observers of a model's MoE blocks, and the one that collects what every scoring criterion is made of.

For token t and expert e with gate weight g and unweighted output f, the residual stream h, the block's routed output y
and the router's probability p (docs/methods.md), StatisticsObserver adds up

    count           tokens routed to e              gate_sum             sum of g
    norm_sum        sum of ||f||                    gated_norm_sum       sum of g ||f||
    max_norm        largest ||f||                   residual_shift_sum   sum of g ||f|| max(1 - cos(h, h + y), 0)
    probability_sum sum of p over all tokens

and of every sum the sum of squares (`gate_square_sum`, …), for standard errors. A family that does not show h or p
lacks that statistic.

What is of the weights alone (`aimer`: mean|w| / rms(w)) is taken when the first batch enters a block.

Shape legend: T tokens of a batch (its sequences flattened), K experts per token, E experts, H hidden size, S statistics.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from toolkit.calibration.vector_sums import VectorSums
from toolkit.cuts.statistics import PARTS, WEIGHTS
from toolkit.moe import BlockActivations, ChannelGroup, LinearCall, MoEBlock, ObservedBatch, mean_over_rms


class Observer(ABC):
    """What sees the activations of a pass over all batches (toolkit/calibration/passes.py).

    A pass goes layer by layer, or over the whole model, which then counts as one layer:

        for every layer:  on_layer_start(its blocks)
                          for every batch, for every block that it enters:  on_batch(activations, batch)
                                           for every linear layer of `mlps`:  on_linear(call, batch)
                          on_layer_end()
    """

    mlps: Sequence[ChannelGroup] = ()
    """MLPs whose linear layers must be observed for it as well."""

    def on_layer_start(self, blocks: Sequence[MoEBlock]) -> None:  # noqa: B027  a hook
        """The batches come to these blocks: none in a dense layer. Called on every rank, also on one without batches."""

    @abstractmethod
    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        """A block has processed a batch."""

    def on_linear(self, call: LinearCall, batch: ObservedBatch) -> None:  # noqa: B027  a hook
        """A linear layer of an observed MLP is about to process a batch."""

    def wants_every_expert(self, block: str) -> bool:
        """Whether `on_batch` reads what every expert answers to a batch's real tokens (`activations.every`)."""
        return False

    def on_layer_end(self) -> None:  # noqa: B027  a hook
        """All batches have passed the layer. Called on every rank."""


class ProgressiveObserver(Observer):
    """An observer that decides how every layer is cut, and also sees the model as it has cut it so far: beside each forward pass
    of the original runs one of that model."""

    @abstractmethod
    def on_pruned_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        """The same block and batch, on what the model as cut so far passes on, before this layer is cut."""

    def wants_every_expert_when_pruned(self, block: str) -> bool:
        """The same of `on_pruned_batch`."""
        return False

    @contextmanager
    def undecided_layer(self) -> Iterator[None]:
        """The layer's blocks as `on_pruned_batch` sees them: as they are, unless it says otherwise."""
        yield

    @abstractmethod
    def pruned_layer(self) -> AbstractContextManager[None]:
        """The layer's blocks as decided, after `on_layer_end`."""


class StatisticsObserver(Observer):
    """One vector of length E per block and statistic."""

    def __init__(self, blocks: Sequence[MoEBlock]) -> None:
        self.experts = {block.name: block.expert_count for block in blocks}
        self.sums = VectorSums()

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        if (aimer := f"{activations.block}/aimer/{WEIGHTS}") not in self.sums:
            self.sums.add({aimer: mean_over_rms(activations.experts)})
        norms = torch.linalg.vector_norm(activations.outputs_TKH, dim=-1).double()
        gates = activations.gate_TK.double()
        routed = gates != 0  # Zaya's token that skips stands as expert 0 with weight 0
        norms = norms * routed
        values_TK = {"gate": gates, "norm": norms, "gated_norm": gates * norms}
        if activations.residual_TH is not None:
            shift_T = _residual_shift(activations.residual_TH, activations.routed_TH)
            values_TK["residual_shift"] = gates * norms * shift_T.unsqueeze(1)
        names = ["count", *(f"{v}_{s}" for s in ("sum", "square_sum") for v in values_TK)]
        stacked_TKS = torch.stack([routed.double(), *values_TK.values(), *(v**2 for v in values_TK.values())], -1)
        for part in PARTS:
            rows = getattr(batch.rows, part).to(gates.device)  # a model may be spread over several
            index = activations.index_TK[rows].flatten()
            sums_ES = gates.new_zeros(self.experts[activations.block], len(names))
            sums_ES.index_add_(0, index, stacked_TKS[rows].flatten(0, 1))
            sums = dict(zip(names, sums_ES.T, strict=True))
            if activations.probability_TE is not None:
                p_TE = activations.probability_TE[rows]
                sums |= {"probability_sum": p_TE.sum(0), "probability_square_sum": (p_TE**2).sum(0)}
            largest = gates.new_zeros(self.experts[activations.block])
            sums["max_norm"] = largest.scatter_reduce_(0, index, norms[rows].flatten(), "amax")
            self.sums.add({f"{activations.block}/{statistic}/{part}": vector for statistic, vector in sums.items()})

    def reduced(self) -> dict[str, torch.Tensor]:
        """The totals over all ranks, as ExpertStatistics names them. Every rank must call it.

        A block that no token entered (Ernie 4.5 VL's experts for images) has zeros: unobserved experts only.
        """
        vectors = self.sums.reduced()
        names, entered = {name.split("/", 1)[1] for name in vectors}, {name.split("/", 1)[0] for name in vectors}
        for block, experts in self.experts.items():
            if block not in entered:
                vectors |= {f"{block}/{name}": torch.zeros(experts, dtype=torch.float64) for name in names}
        return vectors


def _residual_shift(residual_TH: torch.Tensor, routed_TH: torch.Tensor) -> torch.Tensor:
    """max(1 - cos(h, h + y), 0) per token [T]: how far the block turns the residual stream."""
    h, y = residual_TH.double(), routed_TH.double()
    return (1 - torch.nn.functional.cosine_similarity(h, h + y, dim=-1)).clamp(min=0)
