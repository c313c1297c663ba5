"""The pruned model without pruning it: the original, whose routers can choose kept experts only.

Shape legend: T tokens, E experts, H hidden size.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.slice import check_plan, slice_rows
from toolkit.plan import Plan


class RestrictedRouter(nn.Module):
    """The family's own router over the kept rows, speaking in the original experts' numbers."""

    def __init__(self, router: nn.Module, kept: list[int], experts: int) -> None:
        super().__init__()
        self.router = copy.deepcopy(router)
        self.register_buffer("kept", torch.tensor(kept, device=next(router.parameters()).device), persistent=False)
        slice_rows(self.router, kept, experts)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.router(hidden)
        kept: Any = self.kept
        return tuple(kept[part] if not part.is_floating_point() else part for part in out)


@contextmanager
def restricted(block: MoEBlock, kept: list[int]) -> Iterator[None]:
    """`block` as if only `kept` experts were there inside the context."""
    router = block.router
    setattr(block.module, block.router_name, RestrictedRouter(router, kept, block.expert_count))
    try:
        yield
    finally:
        setattr(block.module, block.router_name, router)


@contextmanager
def masked(model: PreTrainedModel, plan: Plan) -> Iterator[PreTrainedModel]:
    """`model` as if pruned by `plan` inside the context, unchanged after it (weights are neither copied nor removed)."""
    blocks = find_blocks(model)
    check_plan(blocks, plan)
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(restricted(block, plan.blocks[block.name].kept))
        yield model
