"""The pruned model without pruning it: the original, whose routers can choose kept experts only.

Shape legend: T tokens, E experts, H hidden size.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.errors import PollardError
from toolkit.moe.blocks import MoEBlock, activate, find_blocks, top_k
from toolkit.moe.slice import slice_router


class RestrictedRouter(nn.Module):
    """The family's own router over the kept rows, speaking in the original experts' numbers."""

    def __init__(self, block: MoEBlock, kept: list[int], experts_per_token: int, router: nn.Module | None = None) -> None:
        """`router` stands in for the block's own."""
        super().__init__()
        self.router = copy.deepcopy(router or block.router)
        self.name, self.experts = block.name, block.expert_count
        self.register_buffer("kept", torch.tensor(kept, device=next(self.router.parameters()).device), persistent=False)
        slice_router(self.router, kept, block.expert_count, experts_per_token)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        out = self.router(*map(self._restricted, inputs), **{name: self._restricted(value) for name, value in named.items()})
        check_choice(self.name, self.router, out)
        kept: Any = self.kept
        return tuple(kept[part] if torch.is_tensor(part) and not part.is_floating_point() else part for part in out)

    def _restricted(self, value: Any) -> Any:
        """A correction bias [E] that the block hands to its router; everything else is the hidden state's."""
        kept: Any = self.kept
        return value[kept] if torch.is_tensor(value) and value.shape == (self.experts,) else value


@contextmanager
def restricted(block: MoEBlock, kept: list[int], experts_per_token: int | None = None) -> Iterator[None]:
    """`block` as if only `kept` experts were there inside the context, as many active per token as now unless given."""
    router = block.router
    setattr(block.module, block.router_name, RestrictedRouter(block, kept, experts_per_token or block.experts_per_token))
    try:
        yield
    finally:
        setattr(block.module, block.router_name, router)


@contextmanager
def activating(model: PreTrainedModel, experts_per_token: int | None) -> Iterator[PreTrainedModel]:
    """`model` with that many experts per token inside the context (None: its own number), all of them to choose from."""
    blocks = find_blocks(model) if experts_per_token else []
    hooks = []
    try:
        for block in blocks:
            activate(block.router, experts_per_token or block.experts_per_token)
            hooks.append(block.router.register_forward_hook(partial(_check_hook, block.name)))
        yield model
    finally:
        for block in blocks:
            activate(block.router, block.experts_per_token)
        for hook in hooks:
            hook.remove()


def _check_hook(name: str, router: nn.Module, inputs: Any, out: tuple[Any, ...]) -> None:
    check_choice(name, router, out)


def check_choice(name: str, router: nn.Module, out: tuple[Any, ...]) -> None:
    """Raises PollardError where a router does not choose as many experts as it is told (Phi-MoE's takes two)."""
    chosen = next(part.shape[-1] for part in out if torch.is_tensor(part) and not part.is_floating_point())
    asked = top_k(router, name)
    if chosen != asked:
        raise PollardError(
            f"{name}: {type(router).__name__} always chooses {chosen} experts per token, never {asked}. "
            f"Keep at least {chosen} experts, and leave pruning.experts_per_token out."
        )
