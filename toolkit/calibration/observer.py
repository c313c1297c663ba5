"""Watch the experts of a whole model, batch after batch.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from toolkit.moe import BlockActivations, observing

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
