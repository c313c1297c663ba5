"""A loss that is a sum over completion tokens: how it becomes the loss of a step, and what of it is logged.

A step's loss is the mean over the completion tokens of all ranks and of all batches that are accumulated: then neither changes
what is learned. transformers counts these tokens (`num_items_in_batch`) and averages gradients over ranks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from toolkit.moe import real_positions
from toolkit.recovery.packing import Batch
from toolkit.recovery.trainer import RecoveryTrainer


class Part(NamedTuple):
    """A part of a loss: its sum, and over how many tokens."""

    total: torch.Tensor
    tokens: torch.Tensor


def mean_over_step(trainer: RecoveryTrainer, part: Part, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """What `compute_loss` returns for a sum over this batch's completion tokens. As SFTTrainer: over those of all ranks and
    accumulated batches, where they are counted."""
    tokens = part.tokens if num_items_in_batch is None else num_items_in_batch
    loss = part.total / torch.as_tensor(tokens).clamp(min=1)
    if trainer.args.average_tokens_across_devices and num_items_in_batch is not None:
        loss = loss * trainer.accelerator.num_processes
    return loss


def log_parts(trainer: RecoveryTrainer, parts: Mapping[str, Part], inputs: Batch) -> None:
    """Logs every part per token that it counts, of all ranks together, and how many tokens have been trained on. A part without
    any is left out, unless all are. Collective."""
    real_BS = inputs["attention_mask"] if "attention_mask" in inputs else real_positions(inputs["position_ids"])
    numbers = [number for part in parts.values() for number in part]
    local = torch.stack([number.detach().double() for number in (*numbers, real_BS.sum())])
    *sums, real = trainer.accelerator.gather(local).view(-1, len(local)).sum(0).tolist()
    trainer._total_train_tokens += int(real)
    metrics: Any = trainer._metrics["train"]
    totals, tokens = sums[::2], sums[1::2]
    for name, total, number in zip(parts, totals, tokens, strict=True):
        if number or not any(tokens):
            metrics[name].append(total / max(number, 1))
    metrics["num_tokens"] = [trainer._total_train_tokens]
