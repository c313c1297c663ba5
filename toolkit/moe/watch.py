"""Watch the experts while a model runs, through transformers' registered experts implementation.

Shape legend: T tokens (batch and sequence flattened), E experts, K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks
from toolkit.moe.surroundings import surrounded

IMPLEMENTATION = "pollard_watch"


class Seen(NamedTuple):
    """What one MoE block did with one batch; rows of padding are still in it."""

    block: str
    index_TK: torch.Tensor  # chosen experts
    gate_TK: torch.Tensor  # their final gate weights
    outputs_TKH: torch.Tensor  # their outputs, before weighting
    routed_TH: torch.Tensor  # y: the weighted sum of the outputs, without shared experts
    hidden_TH: torch.Tensor  # x: what the experts got
    residual_TH: torch.Tensor | None  # h: the residual stream before the block's output is added
    router_input_TH: torch.Tensor | None
    logits_TE: torch.Tensor | None
    probability_TE: torch.Tensor | None  # p: the router's full distribution, where it is a softmax
    run_expert: Callable[[torch.Tensor, int], torch.Tensor]  # (hidden [T', H], expert) -> its unweighted outputs [T', H]


Watcher = Callable[[Seen], None]


@contextmanager
def watching(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Calls `watcher` for every MoE block of every forward pass inside the context; the logits stay the model's own."""
    blocks = find_blocks(model)
    names = {id(block.experts): block.name for block in blocks}
    before = model.config._experts_implementation

    def watch(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
        # Each (token, expert) pair becomes a token of its own with gate weight 1: the family's own implementation then
        # returns every expert's unweighted output, whatever its activation, biases or layout.
        tokens, k = index_TK.shape
        run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)

        def outputs_of(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return run(experts, hidden, index.unsqueeze(1), gate_TK.new_ones(len(index), 1))

        outputs_TKH = outputs_of(hidden_TH.repeat_interleave(k, dim=0), index_TK.flatten()).view(tokens, k, -1)
        routed_TH = (outputs_TKH * gate_TK.unsqueeze(-1)).sum(1)
        name = names[id(experts)]
        here = around[name]
        watcher(
            Seen(
                name, index_TK, gate_TK, outputs_TKH, routed_TH, hidden_TH, here.residual(hidden_TH), here.router_input_TH,
                here.logits_TE, here.probabilities(index_TK, gate_TK),
                lambda hidden, expert: outputs_of(hidden, index_TK.new_full((len(hidden),), expert)),
            )
        )  # fmt: skip
        here.clear()
        return routed_TH.to(hidden_TH.dtype)

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, watch)
    model.set_experts_implementation(IMPLEMENTATION)
    try:
        with surrounded(model, blocks) as around:
            yield
    finally:
        model.set_experts_implementation(before)
