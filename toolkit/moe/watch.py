"""Watch the experts while a model runs, through transformers' registered experts implementation.

Shape legend: T tokens (batch and sequence flattened), K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks

IMPLEMENTATION = "pollard_watch"


class Seen(NamedTuple):
    """What one MoE block did with one batch; rows of padding are still in it."""

    block: str
    index_TK: torch.Tensor  # chosen experts
    gate_TK: torch.Tensor  # their final gate weights
    outputs_TKH: torch.Tensor  # their outputs, before weighting


Watcher = Callable[[Seen], None]


@contextmanager
def watching(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Calls `watcher` for every MoE block of every forward pass inside the context; the logits stay the model's own."""
    names = {id(block.experts): block.name for block in find_blocks(model)}
    before = model.config._experts_implementation

    def watch(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
        # Each (token, expert) pair becomes a token of its own with gate weight 1: the family's own implementation then
        # returns every expert's unweighted output, whatever its activation, biases or layout.
        tokens, k = index_TK.shape
        run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)
        pairs = hidden_TH.repeat_interleave(k, dim=0)
        ones = gate_TK.new_ones(tokens * k, 1)
        outputs_TKH = run(experts, pairs, index_TK.reshape(-1, 1), ones).view(tokens, k, -1)
        watcher(Seen(names[id(experts)], index_TK, gate_TK, outputs_TKH))
        return (outputs_TKH * gate_TK.unsqueeze(-1)).sum(1).to(hidden_TH.dtype)

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, watch)
    model.set_experts_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_experts_implementation(before)
