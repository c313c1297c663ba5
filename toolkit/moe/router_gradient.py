"""Routers learn from every expert, and not from the chosen ones alone (DenseMixer; a straight-through estimator).

The forward pass is the model's own. In the backward pass, with g = dL/dy at a block's output y, a router gets the gradient of

    y' = Σ_e w_e f_e(x)      over all experts e, and dL/dw_e = ⟨g, f_e(x)⟩

instead of that of the sum over the K chosen ones. w are the gate weights that the family's own router gives when it is asked for
all E experts, times a constant per token by which those of the chosen experts are what they are in the forward pass. Where the
scores are a softmax this is the top-k taken as the identity: dL/dlogit_j = p_j/S ⟨g, f_j − Σ_e p_e f_e⟩, S what the chosen
experts' p sum up to where the family normalises them, else 1.

Only routers get another gradient: they are called again on inputs cut off from the graph, so that no other weight, in this layer
or below, sees a difference. Their own gradient of the chosen experts, which the forward pass's graph still gives them, is taken
off again. Of the chosen experts ⟨g, f_e(x)⟩ is what the graph computes anyway, the gradient at their gate weights; the outputs of
the E - K others are computed in the backward pass, K of each token at a time: they are never all in memory.

    backward:  dL/dy ─► node behind the experts, keeps g ─► experts ─► node at their gate weights, gets ⟨g, f_e(x)⟩ of the chosen
                                                                       │ and adds that of the others
                                                   the router's graph ◄┴► the router called again

Shape legend: T tokens (batch and sequence flattened), E experts, K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import MoEBlock, find_blocks, set_top_k
from toolkit.moe.masking import ROUTER_ERRORS, TOTAL_KEYS, routing_of, same_routing
from toolkit.runtime.errors import PollardError

IMPLEMENTATION = "pollard_router_gradient"
PROBES = 16  # random tokens, on which a router is tried before anything starts

RouterInputs = tuple[tuple[Any, ...], Mapping[str, Any]]
RunExperts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden [T, H], experts [T, K], gate weights [T, K]) -> weighted outputs [T, H]."""


class GateWeights(NamedTuple):
    """Of one block, as functions of its router's parameters alone."""

    every_TE: torch.Tensor  # of all experts
    chosen_TK: torch.Tensor  # of the chosen ones, as in the forward pass
    index_TK: torch.Tensor  # which they are


class RouterGradient:
    """What one block's experts need to know of its router in the running forward pass."""

    def __init__(self, block: MoEBlock, before: str) -> None:
        self.block, self.before = block, before
        self.checked = False
        self._inputs: RouterInputs | None = None
        self._asking = False

    def record(self, router: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Hook behind the router."""
        if router.training and torch.is_grad_enabled() and not self._asking:
            self._inputs = tree_map(_cut_off, (args, kwargs))

    def take(self) -> RouterInputs | None:
        """The router's inputs in this pass, cut off from the graph; None where nothing is trained."""
        inputs, self._inputs = self._inputs, None
        return inputs

    def gates(self, inputs: RouterInputs, used: tuple[torch.Tensor, torch.Tensor]) -> GateWeights:
        """`used`: experts and gate weights [T, K] of the forward pass."""
        self._asking = True
        try:
            chosen = chosen_gate_weights(self.block, *inputs)
            every_TE = all_gate_weights(self.block, *inputs)
        finally:
            self._asking = False
        if not self.checked:
            check_gates(self.block, chosen, used, every_TE)
            self.checked = True
        return GateWeights(every_TE * _scale(every_TE, *used), chosen[1], chosen[0])


def _cut_off(value: Any) -> Any:
    return value.detach() if torch.is_tensor(value) else value


def _scale(every_TE: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
    """Per token [T, 1], by what the weights among all experts are multiplied to be those of the forward pass."""
    there_T1 = every_TE.detach().gather(1, index_TK).abs().sum(1, keepdim=True)
    wanted_T1 = gate_TK.detach().abs().sum(1, keepdim=True)
    return torch.where(there_T1 > 0, wanted_T1 / there_T1, 1.0).to(every_TE.dtype)


def chosen_gate_weights(block: MoEBlock, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts [T, K] that the block's router chooses, and their gate weights [T, K]."""
    index, gate = routing_of(block.router(*args, **kwargs))
    return index.reshape(-1, index.shape[-1]), gate.reshape(-1, index.shape[-1])


def all_gate_weights(block: MoEBlock, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The gate weights [T, E] that the block's router gives when it is asked for all its experts."""
    with _choosing(block, block.expert_count):
        index, gate = chosen_gate_weights(block, args, kwargs)
    if index.shape[1] != block.expert_count:
        raise _cannot(block, f"always chooses {index.shape[1]} experts")
    return torch.zeros_like(gate).scatter(1, index, gate)


@contextmanager
def _choosing(block: MoEBlock, experts_per_token: int) -> Iterator[None]:
    set_top_k(block.router, experts_per_token)
    try:
        yield
    finally:
        set_top_k(block.router, block.experts_per_token)


@torch.no_grad()
def check_gates(
    block: MoEBlock,
    chosen: tuple[torch.Tensor, torch.Tensor],
    used: tuple[torch.Tensor, torch.Tensor],
    every_TE: torch.Tensor,
) -> None:
    """Raises PollardError unless the router gives what the experts got, `used`: experts and gate weights [T, K], and gives
    among all experts the same weights, up to a factor per token."""
    experts = block.expert_count
    if not same_routing(chosen, used, experts):
        raise _cannot(block, "does not give its experts' weights by itself: its block changes them")
    every_TE = every_TE.detach()
    if not same_routing((used[0], every_TE.gather(1, used[0]) * _scale(every_TE, *used)), used, experts):
        raise _cannot(block, "gives other weights when it is asked for all experts, by more than a factor per token")


def _cannot(block: MoEBlock, why: str) -> PollardError:
    return PollardError(
        f"finetuning.router_gradient: all cannot work here: the router of {block.name} ({type(block.router).__name__}) {why}. "
        "Leave it out.",
        code="model.no-router-gradient",
    )


def check_router_gradient(model: PreTrainedModel) -> None:
    """Tries the routers of a model, which may be without weights, on random numbers. Those that need more than hidden states are
    tried when training begins.

    Raises PollardError where all experts are active anyway, and where a router is none that this gradient is made for.
    """
    blocks = find_blocks(model)
    _check_choice(blocks)
    for block in blocks:
        _try_router(block, model.config.get_text_config().hidden_size)


def check_some_inactive(experts: int, experts_per_token: int) -> None:
    """Raises PollardError where every token activates all experts of a block: their gradient is that of the whole mixture."""
    if experts <= experts_per_token:
        raise PollardError(
            f"finetuning.router_gradient: all has nothing to add: of {experts} experts every token activates "
            f"{experts_per_token}. Leave it out, or keep more experts than are active (pruning.keep).",
            code="model.all-active",
        )


def _check_choice(blocks: Sequence[MoEBlock]) -> None:
    check_some_inactive(max(block.expert_count for block in blocks), blocks[0].experts_per_token)
    for block in blocks:
        if any(hasattr(block.router, key) for key in TOTAL_KEYS):
            raise _cannot(block, "chooses among more than its experts")


def _try_router(block: MoEBlock, hidden_size: int) -> None:
    """`check_gates` with random weights, on random tokens."""
    router = deepcopy(block.router).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    for tensor in [*router.parameters(), *router.buffers()]:
        if tensor.is_floating_point():
            tensor.data.normal_(std=0.2, generator=generator)
    holder = nn.Module()
    setattr(holder, block.router_name, router)
    alone = replace(block, module=holder)
    hidden_TH = torch.randn(PROBES, hidden_size, generator=generator)
    with torch.no_grad():
        try:
            chosen = chosen_gate_weights(alone, (hidden_TH,), {})
            every_TE = all_gate_weights(alone, (hidden_TH,), {})
        except ROUTER_ERRORS:
            return
        check_gates(alone, chosen, chosen, every_TE)


class _OutputGradient:
    gradient_TH: torch.Tensor  # dL/dy of one forward pass of a block: there when backward has come through its output


class _AtOutput(torch.autograd.Function):
    """y, unchanged; backward, its gradient is kept."""

    @staticmethod
    def forward(ctx: Any, y_TH: torch.Tensor, kept: _OutputGradient) -> torch.Tensor:
        ctx.kept = kept
        return y_TH.view_as(y_TH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (ctx.kept.gradient_TH,) = gradients
        return ctx.kept.gradient_TH, None


class _AtGates(torch.autograd.Function):
    """The chosen experts' gate weights, unchanged; backward, those of all experts get their gradient, and the chosen ones' is
    taken off."""

    @staticmethod
    def forward(
        ctx: Any, gate_TK: torch.Tensor, every_TE: torch.Tensor, chosen_TK: torch.Tensor, index_TK: torch.Tensor,
        hidden_TH: torch.Tensor, run: RunExperts, kept: _OutputGradient,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(index_TK, hidden_TH)
        ctx.run, ctx.kept, ctx.experts, ctx.dtype = run, kept, every_TE.shape[1], every_TE.dtype
        return gate_TK.view_as(gate_TK)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (chosen_TK,) = gradients  # ⟨g, f_e(x)⟩
        index_TK, hidden_TH = ctx.saved_tensors
        found_TK, others_TO = chosen_TK.to(ctx.dtype), inactive_experts(index_TK, ctx.experts)
        every_TE = found_TK.new_zeros(len(index_TK), ctx.experts).scatter(1, index_TK, found_TK)
        for index_Tk in others_TO.split(index_TK.shape[1], dim=1) if others_TO.shape[1] else ():
            products_Tk = _products(ctx.run, hidden_TH, ctx.kept.gradient_TH, index_Tk)
            every_TE = every_TE.scatter(1, index_Tk, products_Tk.to(ctx.dtype))
        del ctx.kept.gradient_TH
        return chosen_TK, every_TE, -found_TK, None, None, None, None


def inactive_experts(index_TK: torch.Tensor, experts: int) -> torch.Tensor:
    """The experts [T, E - K] that each token did not choose, in their order."""
    chosen_TE = torch.zeros(len(index_TK), experts, dtype=torch.uint8, device=index_TK.device).scatter(1, index_TK, 1)
    return chosen_TE.sort(dim=1, stable=True).indices[:, : experts - index_TK.shape[1]]


def _products(run: RunExperts, hidden_TH: torch.Tensor, gradient_TH: torch.Tensor, index_Tk: torch.Tensor) -> torch.Tensor:
    """⟨g, f_e(x)⟩ [T, k] of the experts `index_Tk`. Tokens without a gradient (padding; in the last layer the prompts) are not
    computed on a CPU; a GPU would have to wait to learn which they are."""
    if hidden_TH.device.type != "cpu":
        return _products_of_all(run, hidden_TH, gradient_TH, index_Tk)
    (some,) = gradient_TH.any(1).nonzero(as_tuple=True)
    found_Tk = hidden_TH.new_zeros(index_Tk.shape, dtype=torch.float32)
    if len(some):
        found_Tk[some] = _products_of_all(run, hidden_TH[some], gradient_TH[some], index_Tk[some])
    return found_Tk


def _products_of_all(run: RunExperts, hidden_TH: torch.Tensor, gradient_TH: torch.Tensor, index_Tk: torch.Tensor) -> torch.Tensor:
    # Each pair of token and expert is a token of its own, with gate weight 1
    rows, expert = hidden_TH.repeat_interleave(index_Tk.shape[1], dim=0), index_Tk.reshape(-1, 1)
    outputs_TkH = run(rows, expert, hidden_TH.new_ones(len(rows), 1)).view(*index_Tk.shape, -1)
    return (outputs_TkH.float() * gradient_TH.float().unsqueeze(1)).sum(-1)


def router_gradient_forward(
    experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor
) -> torch.Tensor:
    """The experts implementation."""
    here = cast(RouterGradient, experts.router_gradient)
    own: Any = ALL_EXPERTS_FUNCTIONS.get_interface(here.before, cast(Any, type(experts).forward).__wrapped__)
    inputs = here.take()
    if inputs is None:
        return cast(torch.Tensor, own(experts, hidden_TH, index_TK, gate_TK))
    gates, kept = here.gates(inputs, (index_TK, gate_TK)), _OutputGradient()

    def run(hidden: torch.Tensor, index: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return own(experts, hidden, index, gate)

    gate_TK = cast(Any, _AtGates).apply(gate_TK, *gates, hidden_TH.detach(), run, kept)
    return cast(Any, _AtOutput).apply(own(experts, hidden_TH, index_TK, gate_TK), kept)


def train_routers_on_all_experts(model: PreTrainedModel, blocks: Sequence[MoEBlock]) -> None:
    """From now on every backward pass gives the routers of `blocks` this gradient.

    Raises PollardError where that is in vain or cannot be; in the first pass, where a router's weights are not what the experts
    get.
    """
    _check_choice(blocks)
    before = model.config._experts_implementation
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, router_gradient_forward)
    for block in blocks:
        here = RouterGradient(block, before)
        cast(Any, block.experts).router_gradient = here
        block.router.register_forward_hook(here.record, with_kwargs=True)
    model.set_experts_implementation(IMPLEMENTATION)
