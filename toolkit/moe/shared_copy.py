"""A second copy of a model over the same weights: it can be changed, masked or made lighter while the first one is at work.

    model ──► modules, configuration ──┐
                                       ├──► parameters and buffers, once in memory
    copy  ──► modules, configuration ──┘

A model that drafts for itself is such a copy that does less for a token: fewer experts, or none in some blocks.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.moe.blocks import find_blocks
from toolkit.moe.partition import is_partitioned
from toolkit.runtime.errors import PollardError


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model once more, over the same storage. Raises PollardError for one that is in parts on all ranks."""
    if is_partitioned(model):
        raise PollardError(
            "A model that is in parts on all ranks cannot share its weights with a copy: hold it whole (one process, or "
            "model.placement=spread).",
            code="model.shared-partitioned",
        )
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})  # what is in the memo is not copied


@contextmanager
def without_experts(model: PreTrainedModel, blocks: Collection[str]) -> Iterator[PreTrainedModel]:
    """`model` inside the context as if the routed experts of those blocks answered nothing; none is read. What else is in a block
    (its router, shared experts) stays."""
    experts: list[Any] = [block.experts for block in find_blocks(model) if block.name in blocks]
    own = [vars(module).get("forward") for module in experts]  # where layers are spread over GPUs, a module has one of its own
    for module in experts:
        module.forward = _nothing
    try:
        yield model
    finally:
        for module, forward in zip(experts, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _nothing(hidden: torch.Tensor, *routing: Any, **named: Any) -> torch.Tensor:
    return torch.zeros_like(hidden)
