"""Watch the experts of a whole model, batch after batch.

Shape legend: B sequences, S positions, T = B * S tokens.

The additive statistics: what every scoring criterion is made of, in one pass.

For token t and expert e with gate weight g and unweighted output f, the residual stream h, the block's routed output y
and the router's probability p (docs/methods.md):

    count           tokens routed to e              gate_sum             sum of g
    norm_sum        sum of ||f||                    gated_norm_sum       sum of g ||f||
    max_norm        largest ||f||                   residual_shift_sum   sum of g ||f|| max(1 - cos(h, h + y), 0)
    probability_sum sum of p over all tokens

and of every sum the sum of squares (`gate_square_sum`, …), for standard errors. A family that does not show h or p
lacks that statistic.

Shape legend: T tokens, K experts per token, E experts, H hidden size, S statistics.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from toolkit.cuts.statistics import MAXIMA, PARTS
from toolkit.moe import BlockActivations, MoEBlock, observing
from toolkit.runtime.distributed import gather

Batch = Mapping[str, torch.Tensor]
Mask = dict[str, torch.Tensor]  # "prompt" and "completion": which flattened tokens [T] of a batch are which


class Observer(Protocol):
    """Something that wants to see what the experts do."""

    def begin(self, mask: Mask) -> None:
        """A batch begins, or goes on."""

    def __call__(self, seen: BlockActivations) -> None:
        """A block has worked on it."""


def inputs_and_mask(batch: Batch, device: torch.device) -> tuple[Batch, Mask]:
    """On `device`: what the model gets, and which of its tokens count as what."""
    there = {name: tensor.to(device) for name, tensor in batch.items()}
    real = there["attention_mask"].bool()
    completion = there.pop("completion_mask").bool() & real if "completion_mask" in there else real
    return there, {"prompt": (real & ~completion).flatten(), "completion": completion.flatten()}


@torch.no_grad()
def observe(model: PreTrainedModel, batches: Iterable[Batch], watchers: Sequence[Observer]) -> list[Mask]:
    """Runs the model over the batches while all watchers look; returns every batch's mask."""
    masks = []

    def show(seen: BlockActivations) -> None:
        for watcher in watchers:
            watcher(seen)

    with observing(model, show):
        for batch in batches:
            inputs, mask = inputs_and_mask(batch, model.device)
            for watcher in watchers:
                watcher.begin(mask)
            # The base model: logits over the vocabulary are not needed
            model.base_model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            masks.append(mask)
    return masks


class StatisticsObserver:
    """A watcher that adds up; `begin` must be called before every forward pass.

    Everything is float64, on the model's device, and leaves it once, at the end.
    """

    def __init__(self, blocks: list[MoEBlock]) -> None:
        self.experts = {block.name: block.expert_count for block in blocks}
        self.vectors: dict[str, torch.Tensor] = {}
        self.mask: dict[str, torch.Tensor] = {}

    def begin(self, mask: dict[str, torch.Tensor]) -> None:
        """`mask`: which of the coming batch's flattened tokens [T] are "prompt" and which "completion"."""
        self.mask = mask

    def __call__(self, seen: BlockActivations) -> None:
        norms = torch.linalg.vector_norm(seen.outputs_TKH, dim=-1).double()
        gates = seen.gate_TK.double()
        routed = gates != 0  # Zaya's token that skips stands as expert 0 with weight 0
        norms = norms * routed
        values_TK = {"gate": gates, "norm": norms, "gated_norm": gates * norms}
        if seen.residual_TH is not None:
            values_TK["residual_shift"] = gates * norms * _shift(seen.residual_TH, seen.routed_TH).unsqueeze(1)
        names = ["count", *(f"{v}_{s}" for s in ("sum", "square_sum") for v in values_TK)]
        stacked_TKS = torch.stack([routed.double(), *values_TK.values(), *(v**2 for v in values_TK.values())], -1)
        for part in PARTS:
            rows = self.mask[part].to(gates.device)  # a model may be spread over several
            index = seen.index_TK[rows].flatten()
            sums_ES = gates.new_zeros(self.experts[seen.block], len(names))
            sums_ES.index_add_(0, index, stacked_TKS[rows].flatten(0, 1))
            found = dict(zip(names, sums_ES.T, strict=True))
            if seen.probability_TE is not None:
                p_TE = seen.probability_TE[rows]
                found |= {"probability_sum": p_TE.sum(0), "probability_square_sum": (p_TE**2).sum(0)}
            largest = gates.new_zeros(self.experts[seen.block])
            found["max_norm"] = largest.scatter_reduce_(0, index, norms[rows].flatten(), "amax")
            self._add({f"{seen.block}/{statistic}/{part}": vector for statistic, vector in found.items()})

    def _add(self, found: dict[str, torch.Tensor]) -> None:
        for name, vector in found.items():
            if name not in self.vectors:
                self.vectors[name] = vector.contiguous()
            elif name.split("/")[-2] in MAXIMA:
                self.vectors[name] = torch.maximum(self.vectors[name], vector)
            else:
                self.vectors[name] = self.vectors[name] + vector

    def reduced(self) -> dict[str, torch.Tensor]:
        """The totals over all ranks, on CPU."""
        every = gather({name: vector.cpu() for name, vector in self.vectors.items()})
        self.vectors = {}
        for vectors in every:  # a rank without batches has none
            self._add(vectors)
        return self.vectors


def _shift(residual_TH: torch.Tensor, routed_TH: torch.Tensor) -> torch.Tensor:
    """max(1 - cos(h, h + y), 0) per token [T]: how far the block turns the residual stream."""
    h, y = residual_TH.double(), routed_TH.double()
    return (1 - torch.nn.functional.cosine_similarity(h, h + y, dim=-1)).clamp(min=0)
