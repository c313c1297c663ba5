"""The MoE blocks of a model, found through transformers' experts interface, and the routing numbers they keep."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from toolkit.runtime.errors import PollardError

# Every spelling of the two numbers in the configurations and modules of transformers' families
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
ROUTER_NAMES = ("gate", "router")  # what all families call it


@dataclass(frozen=True)
class MoEBlock:
    """One layer's router and experts.

    `name` is the path of `module`, the parent of the experts (even where that is the decoder layer itself).
    """

    name: str
    module: nn.Module
    experts: nn.Module
    router_name: str  # the router's attribute in `module`
    experts_name: str  # the path of `experts`
    expert_count: int
    experts_per_token: int
    groups: int | None = None  # expert groups the router ranks before it chooses experts; None where it knows none
    groups_per_token: int = 1

    @property
    def router(self) -> nn.Module:
        return getattr(self.module, self.router_name)

    @property
    def router_path(self) -> str:
        return f"{self.name}.{self.router_name}"


def find_blocks(model: nn.Module) -> list[MoEBlock]:
    """The MoE blocks in layer order.

    Raises PollardError for a dense model, and for an MoE whose experts are not behind the experts interface.
    """
    blocks = blocks_in(model)
    if not blocks:
        config: Any = getattr(model, "config", None)
        family = getattr(config, "model_type", type(model).__name__)
        raise PollardError(
            f"{family} has no MoE block that transformers serves through its experts interface. "
            "Pollard prunes mixture-of-experts models (Mixtral, Qwen-MoE, OLMoE, DeepSeek, …); a dense model has no experts.",
            code="model.no-moe",
        )
    return blocks


def blocks_in(model: nn.Module) -> list[MoEBlock]:
    """The same, none for a dense model."""
    modules = dict(model.named_modules())
    blocks = []
    for name, experts in modules.items():
        # `use_experts_implementation` leaves exactly these on the modules it dispatches
        if not (hasattr(experts, "is_transposed") and hasattr(experts, "has_gate") and hasattr(experts, "num_experts")):
            continue
        parent = name.rpartition(".")[0]
        router_name = _router_of(modules[parent], parent)
        router: Any = getattr(modules[parent], router_name)
        groups = None if getattr(router, "topk_method", None) == "greedy" else getattr(router, "num_group", None)
        routing = groups, (router.topk_group if groups else 1)
        blocks.append(
            MoEBlock(parent, modules[parent], experts, router_name, name, experts.num_experts, top_k(router, parent), *routing)
        )
    return blocks


def _router_of(block: nn.Module, name: str) -> str:
    found = [child for child, _ in block.named_children() if child in ROUTER_NAMES]
    if len(found) != 1:
        raise PollardError(
            f"{name}: cannot tell its router ({len(found)} candidates: {found}). This family is not supported yet.",
            code="model.unsupported-family",
        )
    router = getattr(block, found[0])
    if hasattr(router, "tid2eid"):  # DeepSeek-V4's first layers
        raise PollardError(
            f"{name} does not choose experts by a score but looks them up by token id ({type(router).__name__}): "
            "it cannot route around pruned experts.",
            code="model.routes-by-token",
        )
    return found[0]


def top_k(router: Any, name: str) -> int:
    """How many experts `router` (of the block `name`) chooses for a token."""
    value = router.top_k if hasattr(router, "top_k") else next((value for _, value in config_values(router, TOP_K_KEYS)), None)
    if not isinstance(value, int):
        raise PollardError(
            f"{name}: cannot tell how many experts its router chooses. This family is not supported yet.",
            code="model.unsupported-family",
        )
    return value


def config_values(module: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Those of `keys` that the module's configuration has (under its own spelling or an alias), and their values."""
    config = getattr(module, "config", None)
    yield from ((key, getattr(config, key)) for key in keys if hasattr(config, key))


def set_top_k(router: Any, experts_per_token: int) -> None:
    """Makes `router` choose that many experts; routers without a count of their own read it from their configuration."""
    if hasattr(router, "top_k"):
        router.top_k = experts_per_token
    else:
        set_config_values(router.config, TOP_K_KEYS, experts_per_token)


def set_config_values(config: Any, keys: tuple[str, ...], number: int) -> None:
    """Writes `number` under every key the configuration has; a list with one entry per layer stays one."""
    for key in keys:
        value = getattr(config, key, None)  # attribute_map resolves each family's own spelling
        if isinstance(value, int):
            setattr(config, key, number)
        elif isinstance(value, list):
            setattr(config, key, [number] * len(value))
