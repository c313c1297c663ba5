"""A batch of token ids as a model gets it, and which of its tokens are prompt, completion or padding.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

Batch = Mapping[str, torch.Tensor]
"""`input_ids` and `attention_mask` [B, S], optionally `completion_mask` [B, S]."""


class TokenRows(NamedTuple):
    """The tokens of a batch by their numbers among its T, ascending, int64: counted where the batch was made, for to find them in
    a mask on a GPU is to wait for it."""

    prompt: torch.Tensor
    completion: torch.Tensor
    real: torch.Tensor  # both
    padding: torch.Tensor

    @classmethod
    def of(cls, completion: torch.Tensor, real: torch.Tensor, device: torch.device) -> "TokenRows":
        """Of masks, bool [B, S]; the numbers lie on `device`."""
        masks = real & ~completion, completion, real, ~real
        return cls(*(mask.flatten().nonzero().flatten().to(device) for mask in masks))


class ObservedBatch(NamedTuple):
    """Which tokens [T] of a batch are which; padding is neither prompt nor completion."""

    prompt: torch.Tensor  # bool
    completion: torch.Tensor
    rows: TokenRows

    @property
    def real(self) -> torch.Tensor:
        return self.prompt | self.completion


def split_mask(batch: Batch, device: torch.device) -> tuple[Batch, ObservedBatch]:
    """On `device`: what the model gets, and which of its tokens are prompt and completion (all, without a mask)."""
    real = batch["attention_mask"].bool()
    completion = batch["completion_mask"].bool() & real if "completion_mask" in batch else real
    prompt = (real & ~completion).flatten()
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "completion_mask"}
    return inputs, ObservedBatch(prompt.to(device), completion.flatten().to(device), TokenRows.of(completion, real, device))
