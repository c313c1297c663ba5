"""Find the MoE blocks of a model through transformers' experts interface."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from toolkit.errors import PollardError


@dataclass(frozen=True)
class MoEBlock:
    """One layer's router and experts.

    `name` is the path of `module`, the parent of the experts (even where that is the decoder layer itself).
    """

    name: str
    module: nn.Module
    experts: nn.Module
    router_name: str  # the router's attribute in `module`
    expert_count: int
    experts_per_token: int

    @property
    def router(self) -> nn.Module:
        return getattr(self.module, self.router_name)


def find_blocks(model: nn.Module) -> list[MoEBlock]:
    """The MoE blocks in layer order.

    Raises PollardError for a dense model, and for an MoE whose experts are not behind the experts interface.
    """
    modules = dict(model.named_modules())
    blocks = []
    for name, experts in modules.items():
        # `use_experts_implementation` leaves exactly these on the modules it dispatches
        if not (hasattr(experts, "is_transposed") and hasattr(experts, "has_gate") and hasattr(experts, "num_experts")):
            continue
        parent = name.rpartition(".")[0]
        router_name = _router_of(modules[parent], experts, parent)
        router = getattr(modules[parent], router_name)
        blocks.append(MoEBlock(parent, modules[parent], experts, router_name, experts.num_experts, router.top_k))
    if not blocks:
        config: Any = getattr(model, "config", None)
        family = getattr(config, "model_type", type(model).__name__)
        raise PollardError(
            f"{family} has no MoE block that transformers serves through its experts interface. "
            "Pollard prunes mixture-of-experts models (Mixtral, Qwen-MoE, OLMoE, DeepSeek, …); a dense model has no experts."
        )
    return blocks


def _router_of(block: nn.Module, experts: nn.Module, name: str) -> str:
    """The child whose weight has one row per expert and that knows how many to choose."""
    found = [
        child_name
        for child_name, child in block.named_children()
        if child is not experts and hasattr(child, "top_k") and len(getattr(child, "weight", ())) == experts.num_experts
    ]
    if len(found) != 1:
        raise PollardError(
            f"{name}: cannot tell its router ({len(found)} candidates: {found}). This family is not supported yet."
        )
    return found[0]


EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
