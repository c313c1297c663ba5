"""A batch of token ids as a model gets it, and which of its tokens are prompt, completion or padding.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

Batch = Mapping[str, torch.Tensor]
"""`input_ids` and `attention_mask` [B, S], optionally `completion_mask` [B, S]."""


class ObservedBatch(NamedTuple):
    """Which tokens [T] of a batch are which; padding is neither prompt nor completion."""

    prompt: torch.Tensor  # bool
    completion: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        return self.prompt | self.completion


def split_mask(batch: Batch, device: torch.device) -> tuple[Batch, ObservedBatch]:
    """On `device`: what the model gets, and which of its tokens are prompt and completion (all, without a mask)."""
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    real = inputs["attention_mask"].bool()
    completion = inputs.pop("completion_mask").bool() & real if "completion_mask" in inputs else real
    return inputs, ObservedBatch((real & ~completion).flatten(), completion.flatten())
