"""Watch the experts while a model runs, through transformers' registered experts implementation.

Shape legend: T tokens (batch and sequence flattened), E experts, K experts per token, H hidden size.

What the experts that were not chosen would have said.

Shape legend: T tokens, E experts, K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks
from toolkit.moe.router_hooks import router_context

IMPLEMENTATION = "pollard_watch"


class BlockActivations(NamedTuple):
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


Watcher = Callable[[BlockActivations], None]


@contextmanager
def observing(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
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
            BlockActivations(
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
        with router_context(model, blocks) as around:
            yield
    finally:
        model.set_experts_implementation(before)


def all_expert_outputs(seen: BlockActivations, rows: torch.Tensor, experts: int) -> torch.Tensor:
    """F [T, E, H]: every expert's unweighted output for the tokens `rows` [T]; what was computed already is reused."""
    index_TK, hidden_TH = seen.index_TK[rows], seen.hidden_TH[rows]
    F_TEH = hidden_TH.new_empty(len(rows), experts, seen.outputs_TKH.shape[-1])
    spread = index_TK.unsqueeze(-1).expand(-1, -1, F_TEH.shape[-1])
    F_TEH.scatter_(1, spread, seen.outputs_TKH[rows].to(F_TEH.dtype))
    chosen_TE = torch.zeros(len(rows), experts, dtype=torch.bool, device=rows.device).scatter_(1, index_TK, True)
    for expert in range(experts):
        others = (~chosen_TE[:, expert]).nonzero().flatten()
        if len(others):
            F_TEH[others, expert] = seen.run_expert(hidden_TH[others], expert).to(F_TEH.dtype)
    return F_TEH
