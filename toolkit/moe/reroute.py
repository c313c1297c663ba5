"""Route tokens over a subset of a block's experts, cheaply, by the family's own router.

Routers begin with a linear layer, whose result, the logits, does not depend on the subset. So the family's router is
copied with the identity in place of its weight: fed with logits it does the rest (softmax, bias, top-k, scaling) as
itself. Where that copy does not agree with the router on the first batch, the router itself is used.

Shape legend: T tokens, E experts, K experts per token, H hidden size.
"""

import copy

import torch
from torch import nn

from toolkit.moe.blocks import MoEBlock
from toolkit.moe.masking import RestrictedRouter
from toolkit.moe.observe import BlockActivations
from toolkit.runtime.errors import PollardError

# What a router raises that needs more than its first input, or returns something else than a choice
CANNOT = (RuntimeError, IndexError, TypeError, StopIteration, AttributeError)


class Rerouter:
    """`rerouter(inputs, kept)` gives the experts [T, K] (in the original numbers) and gate weights [T, K] over `kept`.

    `seen` is the first batch of the block; `inputs` come from `inputs(seen)`. Raises PollardError where the family's
    router cannot be called apart from its block, and for a router that chooses within groups.
    """

    def __init__(self, block: MoEBlock, seen: BlockActivations) -> None:
        if (block.groups or 1) > 1:
            raise PollardError(
                f"{block.name} chooses experts within {block.groups} groups: the reconstruction search over such routers is not "
                "built yet. Choose another criterion."
            )
        self.block, self.experts = block, block.expert_count
        small = _logits_to_choice(block.router, seen)
        self.from_logits = small is not None
        self.router = small or _bare(block.router)
        try:
            everything = self(self.inputs(seen), list(range(self.experts)))
            agrees = same_choice(everything, (seen.index_TK, seen.gate_TK), self.experts)
        except CANNOT:
            agrees = False
        if not agrees:
            raise PollardError(
                f"{block.name}: its router, called by itself, does not choose as it did in the model. The reconstruction "
                "search cannot serve this family: choose another criterion."
            )

    def inputs(self, seen: BlockActivations) -> torch.Tensor:
        """What the rerouter works from: logits [T, E], or the router's own input [T, H]."""
        found = seen.logits_TE if self.from_logits else seen.router_input_TH
        if found is None:
            raise PollardError(f"{seen.block}: its router did not run before its experts. Choose another criterion.")
        return found

    def __call__(self, inputs: torch.Tensor, kept: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return choice_of(RestrictedRouter(self.block, kept, self.block.experts_per_token, self.router)(inputs))

    def gates_of(self, inputs: torch.Tensor, chosen_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As if per token just the experts `chosen_TK` were there (for routers that work from logits)."""
        first = torch.zeros_like(inputs)
        first[:, : chosen_TK.shape[1]] = inputs.gather(1, chosen_TK)
        index, gate = self(first, list(range(chosen_TK.shape[1])))
        return chosen_TK.gather(1, index), gate


def choice_of(out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and their gate weights, from what a router returns: the integers, and the last numbers of their shape."""
    index = next(part for part in out if torch.is_tensor(part) and not part.is_floating_point())
    gate = [part for part in out if torch.is_tensor(part) and part.is_floating_point() and part.shape == index.shape][-1]
    return index, gate


def _bare(router: nn.Module) -> nn.Module:
    bare = copy.deepcopy(router)
    bare._forward_hooks.clear()
    return bare


def _logits_to_choice(router: nn.Module, seen: BlockActivations) -> nn.Module | None:
    """The router as a function of its logits, or None where it is not one."""
    weight, logits = getattr(router, "weight", None), seen.logits_TE
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
        choice = choice_of(small(logits))
    except CANNOT:
        return None
    return small if same_choice(choice, (seen.index_TK, seen.gate_TK), experts) else None


def same_choice(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], experts: int) -> bool:
    """Whether two choices, each experts [T, K] and gate weights [T, K], give every token the same weights, to rounding."""
    if one[0].shape != other[0].shape:
        return False
    ours, theirs = (
        torch.zeros(len(index), experts, dtype=torch.float64, device=index.device).scatter_(1, index, gate.double())
        for index, gate in (one, other)
    )
    # Some routers take their softmax in float32 whatever the model's dtype
    wide = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(one[1].dtype).eps)
    return torch.allclose(ours, theirs, rtol=wide, atol=wide)
