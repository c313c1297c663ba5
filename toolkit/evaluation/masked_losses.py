"""The loss of many masked plans: of a loaded model one after the other; of one that is streamed all at once, layer by layer.

    read layer 0   plan 0: batch 0, batch 1, …   plan 1: batch 0, batch 1, …   plan 2: …
    read layer 1   plan 0: …                     (plan 1 keeps no layer 1)     plan 2: …
    …
    read the head  plan 0: loss                  plan 1: loss                  plan 2: loss

Every plan has hidden states of its own, and every layer is read once for all plans. What waits takes

    plans × tokens × H × bytes per number, twice: hidden states, and the embeddings that every forward pass keeps

on each rank for its share of the tokens: 30 plans, 64 examples of 512 tokens, H 4096 and bfloat16 are 2 × 8 GB. It waits where
moe/activation_offload.py puts it. Of more plans than there is memory for (half of what is free) there are several groups, and
each group reads the checkpoint once; a line says so.

Shape legend: H hidden size.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from toolkit.cuts import LayerwiseMasks, Plan, check_plan, masked_in_form
from toolkit.evaluation.likelihood import Loss, LossSum, batch_loss, completion_loss, mean_loss
from toolkit.moe import ActivationOffload, Batch, StreamedModel, base_model_returns, one_layer_at_a_time
from toolkit.runtime.distributed import gather, on_all_ranks, say, shard
from toolkit.runtime.progress import progress

OnMeasured = Callable[[int, Loss], None]


def masked_losses(
    model: PreTrainedModel | StreamedModel,
    plans: Sequence[Plan | None],
    batches: Sequence[dict[str, torch.Tensor]],
    on_measured: OnMeasured = lambda number, loss: None,
) -> list[Loss]:
    """The `completion_loss` of `model` as if cut by each of `plans`, in their order; None: the original's.

    `model`: loaded (not in parts over ranks), or streamed, of which each rank holds one layer at a time. A plan in the dense form
    is measured in that form. Every rank calls it with all batches, does its share, and returns the same. `on_measured` is called
    on every rank, with the number of a plan and its loss, as soon as that is known.

    Raises PollardError for a plan that does not fit the model, before anything is measured.
    """
    for cut in filter(None, plans):
        check_plan(model.model if isinstance(model, StreamedModel) else model, cut)
    if isinstance(model, StreamedModel):
        return _streamed_losses(model, plans, batches, on_measured)
    losses = []
    for number, plan in enumerate(plans):
        with masked_in_form(model, plan):
            losses.append(completion_loss(model, batches))
        on_measured(number, losses[-1])
    return losses


def _streamed_losses(
    model: StreamedModel, plans: Sequence[Plan | None], batches: Sequence[Batch], on_measured: OnMeasured
) -> list[Loss]:
    model.check_head()
    mine, losses = shard(batches), list[Loss]()
    size = _plans_at_once(model, len(plans), mine) if plans else 1
    for start in range(0, len(plans), size):
        group = [LayerwiseMasks(model.model, plan) for plan in plans[start : start + size]]
        sums = on_all_ranks(partial(_group_losses, model, group, mine))
        for ranks in zip(*gather(sums), strict=True):
            losses.append(mean_loss(ranks))
            on_measured(len(losses) - 1, losses[-1])
    return losses


def _plans_at_once(model: StreamedModel, plans: int, batches: Sequence[Batch]) -> int:
    """How many plans go through the layers together: the same on all ranks, in groups of about one size."""
    fitting = [number for number in gather(_offload(model).capacity(_waiting_bytes(model, batches))) if number is not None]
    groups = -(-plans // max(1, min([plans, *fitting])))
    if groups > 1:
        say(f"  {plans} plans have more hidden states than memory holds: the checkpoint is read {groups} times")
    return -(-plans // groups)


def _waiting_bytes(model: StreamedModel, batches: Sequence[Batch]) -> int:
    """What the forward passes of one plan hold before a layer, from what the largest batch's does."""
    if not batches:
        return 0
    sizes = [batch["input_ids"].numel() for batch in batches]
    with one_layer_at_a_time(model.model, model.layers) as held:
        largest = held.start(_inputs(batches[sizes.index(max(sizes))], model))
        return largest.offloaded.nbytes * sum(sizes) // max(sizes)


@torch.no_grad()
def _group_losses(model: StreamedModel, plans: Sequence[LayerwiseMasks], batches: Sequence[Batch]) -> list[LossSum]:
    """Of each plan over this rank's batches, in one pass over the checkpoint."""
    sums = [LossSum(0.0, 0) for _ in plans]
    if not batches:
        return sums
    with one_layer_at_a_time(model.model, model.layers, _offload(model)) as held:
        passes = []
        for plan in plans:
            with plan.applied():
                passes.append([held.start(_inputs(batch, model), keep_output=True) for batch in batches])
        needed = sorted({number for plan in plans for number in plan.layers})
        for number in progress(needed, "losses, layer by layer"):
            with model.layer(number):
                for plan, its_passes in zip(plans, passes, strict=True):
                    if number not in plan.layers:
                        continue
                    held.check(number, its_passes)
                    with plan.applied(number):
                        for forward_pass in its_passes:
                            forward_pass.resume(forward_pass.output())
        held.check(None)
        with model.head() as whole:
            for at, (plan, its_passes) in enumerate(zip(plans, passes, strict=True)):
                with plan.applied():
                    for batch, forward_pass in zip(batches, its_passes, strict=True):
                        with base_model_returns(whole, forward_pass.take_output()):
                            sums[at] = sums[at].plus(batch_loss(whole, batch, model.device))
    return sums


def _offload(model: StreamedModel) -> ActivationOffload:
    return ActivationOffload(model.device, (*model.model.parameters(), *model.model.buffers()))


def _inputs(batch: Batch, model: StreamedModel) -> Batch:
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
