"""Loss: finer than right or wrong, and there even where a pruned model answers nothing rightly.

Shape legend: B sequences, S positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.runtime.distributed import gather, shard
from toolkit.runtime.progress import progress


class Loss(NamedTuple):
    mean: float  # nats per token
    tokens: int

    @property
    def finite(self) -> float | None:
        """The mean for a JSON file, which knows no NaN."""
        return self.mean if math.isfinite(self.mean) else None


@torch.no_grad()
def completion_loss(model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]]) -> Loss:
    """Mean cross entropy over the completion tokens of all `batches` (as `tasks.padded_batches` makes them).

    Ranks take whole batches in turn; every rank returns the mean over all tokens, whoever saw them. Not a number where
    there is no token to predict.
    """
    total, tokens = 0.0, 0
    mine = shard(batches)
    sizes = [len(batch["input_ids"]) for batch in mine]
    for batch in progress(mine, "loss", sizes, sum(len(batch["input_ids"]) for batch in batches)):
        ids_BS, mask_BS = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        logits_BSV = model(ids_BS, attention_mask=mask_BS, use_cache=False).logits[:, :-1]
        counted_BS = batch["completion_mask"].to(model.device)[:, 1:].bool()
        losses = torch.nn.functional.cross_entropy(logits_BSV[counted_BS].float(), ids_BS[:, 1:][counted_BS], reduction="none")
        total += losses.double().sum().item()
        tokens += int(counted_BS.sum())
    every = gather((total, tokens))
    counted = sum(tokens for _, tokens in every)
    return Loss(math.fsum(total for total, _ in every) / counted if counted else math.nan, counted)
