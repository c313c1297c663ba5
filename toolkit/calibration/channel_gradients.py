"""What a backward pass says of channels: how much the loss would change without them, to first and second order.

L is the summed cross entropy of the completion tokens, a the input of a down projection at token t, channel c. Per block and part

    channel_taylor   [E, W]   sum of a · dL/da over the tokens routed to e; of an MLP [W], over all tokens
    channel_fisher   [E, W]   sum of (a · dL/da)^2

Without a gradient of any parameter, for W_dn the down projection

    sum_h W_dn[h, c] · dL/dW_dn[h, c]  =  sum_t a_tc · dL/da_tc

which is LLM-Pruner's first-order importance of the channel's column (arXiv 2305.11627, `vectorize`; where gate and up projection
are multiplied, that of its up row is the same number). L is a sum over tokens, so both add over batches and ranks. A part is
that of the token at which a lies: a prompt's channels have gradients, too, through what later tokens attend to.

Memory: the whole model, and the activations of one batch in all layers, as in training without checkpointing; no gradient of a
parameter, and no optimizer.

Shape legend: B sequences, S positions, R tokens, P parts (prompt, completion), E experts, W width (channels), V vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from toolkit.calibration.channels import part_masks, sum_by_part, zeros
from toolkit.calibration.vector_sums import VectorSums
from toolkit.cuts.statistics import PARTS
from toolkit.moe import Batch, ChannelGradient, ChannelGroup, ObservedBatch, logits_at, observing_gradients, split_mask


class GradientSums:
    """Adds up what backward passes show; `batch` is the one at work."""

    def __init__(self) -> None:
        self.sums = VectorSums()
        self.batch: ObservedBatch | None = None

    def add(self, found: ChannelGradient) -> None:
        assert self.batch is not None
        group, rows = found.group, found.tokens
        count = len(found.channels_RW) if rows is None else None
        mask_PR = part_masks(self.batch, found.channels_RW.device, count, group.name)
        if rows is not None:
            mask_PR = mask_PR[:, rows]
        real = mask_PR.any(0)  # padding may hold anything
        effects_RW = found.channels_RW[real].double() * found.gradient_RW[real].double()
        share_PR = mask_PR[:, real].double()
        for statistic, summand in (("channel_taylor", torch.clone), ("channel_fisher", torch.square)):
            sums_PW = sum_by_part(share_PR, effects_RW, summand)
            if found.expert is not None:
                sums_PEW = sums_PW.new_zeros(len(PARTS), group.experts or 0, group.width)
                sums_PEW[:, found.expert] = sums_PW
                sums_PW = sums_PEW
            self.sums.add({f"{group.name}/{statistic}/{part}": sums for part, sums in zip(PARTS, sums_PW, strict=True)})


@torch.enable_grad()
def observe_gradients(
    model: PreTrainedModel, batches: Iterable[Batch], groups: Sequence[ChannelGroup]
) -> dict[str, torch.Tensor]:
    """The statistics of `groups` over the batches of all ranks, as ExpertStatistics names them; batches as for `calibrate`.

    The model must be in memory as a whole. Every rank must call it.
    """
    found = GradientSums()
    with observing_gradients(model, groups, found.add):
        for batch in batches:
            inputs, found.batch = split_mask(batch, model.device)
            loss = completion_loss(model, inputs, found.batch)
            if loss.requires_grad:  # else no completion token has anything before it
                loss.backward()
    return zeros(groups, ("channel_taylor", "channel_fisher")) | found.sums.reduced()


def completion_loss(model: PreTrainedModel, inputs: Batch, batch: ObservedBatch) -> torch.Tensor:
    """The summed cross entropy of the batch's completion tokens, each predicted from the real token before it."""
    ids_BS, real_BS = inputs["input_ids"], inputs["attention_mask"].bool()
    counted_BS = batch.completion.view(ids_BS.shape)[:, 1:] & real_BS[:, :-1]
    if not counted_BS.any():
        return torch.zeros((), device=ids_BS.device)
    logits_NV = logits_at(model, {"input_ids": ids_BS, "attention_mask": inputs["attention_mask"]}, counted_BS)
    targets = ids_BS[:, 1:][counted_BS].to(logits_NV.device)
    return cross_entropy(logits_NV.float() if logits_NV.dtype != torch.float64 else logits_NV, targets, reduction="sum")
