"""Routers over fewer experts: sliced in place, or standing in for the original's as if the others were gone.

- `slice_router`, `slice_tensors`: keep the rows of some experts, in memory or on the meta device.
- `restricted`: a block whose router can choose kept experts only; the weights stay. This is the pruned model without pruning.
- `Rerouter`: routes observed tokens over many subsets of a block's experts, cheaply. Routers begin with a linear layer, whose
  result, the logits, does not depend on the subset. So the family's router is copied with the identity in place of its weight:
  fed with logits it computes the remaining steps (softmax, bias, top-k, scaling). Where that copy does not agree with the router
  on the first batch, the router itself is used.
- `check_prunable`: what routers cannot do is an error before anything starts.

Shape legend: T tokens, E experts, K experts per token, H hidden size.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.blocks import EXPERT_KEYS, MoEBlock, find_blocks, set_config_values, set_top_k, top_k
from toolkit.moe.observe import BlockActivations
from toolkit.runtime.errors import PollardError

# Counts of routers with rows behind the experts': gates of shared experts (Inkling), a class that skips (Zaya)
TOTAL_KEYS = ("n_total_experts", "num_router_classes")


def kept_rows(rows: int, kept: Sequence[int], experts: int) -> list[int]:
    """Indices of the rows that stay of an axis that holds the experts, and perhaps more behind them."""
    return [*kept, *range(experts, rows)]


def slice_tensors(module: nn.Module, kept: Sequence[int], experts: int, totals: set[int]) -> None:
    """Keeps what belongs to `kept` of the parameters and buffers `module` itself holds with one row per expert."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        axis = next((axis for axis, size in enumerate(tensor.shape) if size > 1), 0)  # Ernie's bias is [1, experts]
        if not tensor.ndim or tensor.shape[axis] not in totals:
            continue
        index = torch.tensor(kept_rows(tensor.shape[axis], kept, experts), device=tensor.device)
        rows = tensor.data.index_select(axis, index)
        setattr(module, name, nn.Parameter(rows, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else rows)
        if isinstance(module, nn.Linear) and name == "weight":
            module.out_features = len(rows)


def slice_router(router: Any, kept: Sequence[int], experts: int, experts_per_token: int) -> None:
    """Makes `router` choose `experts_per_token` of the kept experts only, numbered 0, 1, …"""
    totals = {experts} | {getattr(router, key) for key in TOTAL_KEYS if hasattr(router, key)}
    for module in router.modules():
        slice_tensors(module, kept, experts, totals)
    for key in (*EXPERT_KEYS, *TOTAL_KEYS):
        if isinstance(getattr(router, key, None), int):
            setattr(router, key, getattr(router, key) - experts + len(kept))
    if hasattr(router, "config"):  # some look their numbers up while they route
        router.config = copy.copy(router.config)
        set_config_values(router.config, EXPERT_KEYS, len(kept))
    set_top_k(router, experts_per_token)


class RestrictedRouter(nn.Module):
    """The family's own router over the kept rows; it returns the original's expert numbers."""

    def __init__(self, block: MoEBlock, kept: list[int], experts_per_token: int, router: nn.Module | None = None) -> None:
        """`router`: used in place of the block's own."""
        super().__init__()
        self.router = copy.deepcopy(router or block.router)
        self.name, self.experts = block.name, block.expert_count
        self.register_buffer("kept", torch.tensor(kept, device=next(self.router.parameters()).device), persistent=False)
        slice_router(self.router, kept, block.expert_count, experts_per_token)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        out = self.router(*map(self._restricted, inputs), **{name: self._restricted(value) for name, value in named.items()})
        check_top_k(self.name, self.router, out)
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
def override_top_k(model: PreTrainedModel, experts_per_token: int | None) -> Iterator[PreTrainedModel]:
    """`model` with that many experts per token inside the context (None: its own number), all of them to choose from."""
    blocks = find_blocks(model) if experts_per_token else []
    hooks = []
    try:
        for block in blocks:
            set_top_k(block.router, experts_per_token or block.experts_per_token)
            hooks.append(block.router.register_forward_hook(partial(_check_hook, block.name)))
        yield model
    finally:
        for block in blocks:
            set_top_k(block.router, block.experts_per_token)
        for hook in hooks:
            hook.remove()


def _check_hook(name: str, router: nn.Module, inputs: Any, out: tuple[Any, ...]) -> None:
    check_top_k(name, router, out)


def check_top_k(name: str, router: nn.Module, out: tuple[Any, ...]) -> None:
    """Raises PollardError where a router does not choose as many experts as its top-k says (Phi-MoE's takes two)."""
    chosen = next(part.shape[-1] for part in out if torch.is_tensor(part) and not part.is_floating_point())
    expected = top_k(router, name)
    if chosen != expected:
        raise PollardError(
            f"{name}: {type(router).__name__} always chooses {chosen} experts per token, never {expected}. "
            f"Keep at least {chosen} experts, and leave pruning.experts_per_token out.",
            code="model.fixed-top-k",
        )


def fewest_experts(blocks: Sequence[MoEBlock]) -> int:
    """Per block: of which the routers can choose as many for a token as now, or all where that is more."""
    return max(_fewest_in_groups(block, block.experts_per_token) for block in blocks)


def _fewest_in_groups(block: MoEBlock, experts_per_token: int) -> int:
    return block.groups * max(2, -(-experts_per_token // block.groups_per_token)) if block.groups else 1


def check_prunable(blocks: Sequence[MoEBlock], keep: int, experts_per_token: int) -> None:
    """Raises PollardError unless these blocks can be routed with `keep` experts each, `experts_per_token` at a time."""
    for block in blocks:
        if experts_per_token > block.experts_per_token:
            raise PollardError(
                f"The model activates {block.experts_per_token} experts per token: "
                f"pruning.experts_per_token can lower that, not raise it to {experts_per_token}.",
                code="plan.raises-top-k",
            )
        if block.groups is None:
            continue
        groups, each, needed = block.groups, keep // block.groups, _fewest_in_groups(block, experts_per_token)
        problem = f"{keep} experts cannot be kept: {block.name} routes within {groups} group{'s' * (groups > 1)} of experts"
        if keep % groups:
            raise PollardError(f"{problem} of equal size. Give a multiple of {groups}.", code="plan.uneven-groups")
        if each < 2:
            raise PollardError(
                f"{problem}, ranked by the two best of each. Keep at least {needed}.", code="plan.groups-too-small"
            )
        if block.groups_per_token * each < experts_per_token:
            raise PollardError(
                f"{problem} and takes {experts_per_token} experts per token from the best {block.groups_per_token}, which hold "
                f"only {block.groups_per_token * each}. Keep at least {needed}, or lower pruning.experts_per_token.",
                code="plan.groups-too-small",
            )


# What a router raises that needs more than its first input, or returns something else than a choice
ROUTER_ERRORS = (RuntimeError, IndexError, TypeError, StopIteration, AttributeError)


class Rerouter:
    """`rerouter(inputs, kept)` gives the experts [T, K] (in the original numbers) and gate weights [T, K] over `kept`.

    `activations`: of the block's first batch; `inputs` come from the method of that name. Raises PollardError where the family's
    router cannot be called apart from its block, and for a router that chooses within groups.
    """

    def __init__(self, block: MoEBlock, activations: BlockActivations) -> None:
        if (block.groups or 1) > 1:
            raise PollardError(
                f"{block.name} chooses experts within {block.groups} groups: the reconstruction search over such routers is not "
                "built yet. Choose another criterion.",
                code="reconstruction.groups",
            )
        self.block, self.experts = block, block.expert_count
        small = _logits_to_choice(block.router, activations)
        self.from_logits = small is not None
        self.router = small or _bare(block.router)
        self._among_first: RestrictedRouter | None = None  # over the first K experts
        try:
            every_expert = self(self.inputs(activations), list(range(self.experts)))
            agrees = same_routing(every_expert, (activations.index_TK, activations.gate_TK), self.experts)
        except ROUTER_ERRORS:
            agrees = False
        if not agrees:
            raise PollardError(
                f"{block.name}: its router, called by itself, does not choose as it did in the model. The reconstruction "
                "search cannot serve this family: choose another criterion.",
                code="reconstruction.router-differs",
            )

    def inputs(self, activations: BlockActivations) -> torch.Tensor:
        """What the rerouter works from: logits [T, E], or the router's own input [T, H]."""
        found = activations.logits_TE if self.from_logits else activations.router_input_TH
        if found is None:
            raise PollardError(
                f"{activations.block}: its router did not run before its experts. Choose another criterion.",
                code="reconstruction.router-not-run",
            )
        return found

    def __call__(self, inputs: torch.Tensor, kept: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return routing_of(RestrictedRouter(self.block, kept, self.block.experts_per_token, self.router)(inputs))

    def gate_weights(self, inputs: torch.Tensor, chosen_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The routing as if for each token only the experts `chosen_TK` existed (for routers that work from logits)."""
        k = self.block.experts_per_token
        if self._among_first is None:  # made once: its index goes to the device, which waits
            self._among_first = RestrictedRouter(self.block, list(range(k)), k, self.router)
        first = nn.functional.pad(inputs.gather(1, chosen_TK), (0, self.experts - k))
        index, gate = routing_of(self._among_first(first))
        return chosen_TK.gather(1, index), gate


def routing_of(out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and their gate weights, from what a router returns: the integers, and the last numbers of their shape."""
    index = next(part for part in out if torch.is_tensor(part) and not part.is_floating_point())
    gate = [part for part in out if torch.is_tensor(part) and part.is_floating_point() and part.shape == index.shape][-1]
    return index, gate


def _bare(router: nn.Module) -> nn.Module:
    bare = copy.deepcopy(router)
    bare._forward_hooks.clear()
    return bare


def _logits_to_choice(router: nn.Module, activations: BlockActivations) -> nn.Module | None:
    """The router as a function of its logits, or None where it is not one."""
    weight, logits = getattr(router, "weight", None), activations.logits_TE
    if logits is None or not isinstance(weight, nn.Parameter):
        return None
    small = _bare(router)
    experts, hidden = weight.shape
    small.weight = nn.Parameter(torch.eye(experts, dtype=weight.dtype, device=weight.device), requires_grad=False)
    if isinstance(getattr(small, "bias", None), nn.Parameter):
        nn.init.zeros_(small.bias)  # type: ignore[arg-type]
    for name, value in vars(small).items():
        if type(value) is int and value == hidden and "hidden" in name:
            setattr(small, name, experts)
    try:
        choice = routing_of(small(logits))
    except ROUTER_ERRORS:
        return None
    return small if same_routing(choice, (activations.index_TK, activations.gate_TK), experts) else None


def same_routing(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], experts: int) -> bool:
    """Whether two choices, each experts [T, K] and gate weights [T, K], give every token the same weights, to rounding."""
    if one[0].shape != other[0].shape:
        return False
    first, second = (
        torch.zeros(len(index), experts, dtype=torch.float64, device=index.device).scatter_(1, index, gate.double())
        for index, gate in (one, other)
    )
    # Some routers take their softmax in float32 whatever the model's dtype
    wide = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(one[1].dtype).eps)
    return torch.allclose(first, second, rtol=wide, atol=wide)
