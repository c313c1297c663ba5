"""Cut a model in memory down to the experts of a plan."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.errors import PollardError
from toolkit.moe.blocks import EXPERT_KEYS, MoEBlock, find_blocks
from toolkit.plan import Plan


def check_plan(blocks: Sequence[MoEBlock], plan: Plan) -> None:
    """Raises PollardError unless `plan` speaks of exactly these blocks, and can be routed in them."""
    ours, theirs = {block.name: block for block in blocks}, set(plan.blocks)
    if ours.keys() != theirs:
        missing, unknown = sorted(ours.keys() - theirs), sorted(theirs - ours.keys())
        raise PollardError(
            f"The plan is for another model: blocks it does not name {missing}, blocks the model does not have {unknown}."
        )
    for name, block in ours.items():
        if plan.blocks[name].experts != block.expert_count:
            raise PollardError(
                f"The plan says {plan.blocks[name].experts} experts in {name}; the model has {block.expert_count}."
            )
    check_prunable(blocks, plan.keep)


def check_prunable(blocks: Sequence[MoEBlock], keep: int) -> None:
    """Raises PollardError unless these blocks can be routed with `keep` experts each."""
    for block in blocks:
        if keep < block.experts_per_token:
            raise PollardError(
                f"{keep} experts cannot serve a model that activates {block.experts_per_token} per token. "
                "Activating fewer experts per token is not built yet: keep at least that many."
            )
        groups = next((getattr(block.router, key) for key in ("num_group", "n_group") if getattr(block.router, key, None)), 1)
        if groups > 1:
            raise PollardError(
                f"{block.name} routes within {groups} groups of experts; pruning group-limited routers is not built yet."
            )


def slice_rows(module: nn.Module, kept: Sequence[int], experts: int) -> None:
    """Keeps rows `kept` of every parameter and buffer of `module` that has one row per expert, and its count."""
    index = torch.tensor(list(kept))
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim and tensor.shape[0] == experts:
            rows = tensor.data.index_select(0, index.to(tensor.device))
            setattr(module, name, nn.Parameter(rows, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else rows)
    if getattr(module, "num_experts", None) == experts:
        module.num_experts = len(kept)  # type: ignore[assignment]


def slice_model(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Removes the pruned experts from `model` in place and returns it. Raises PollardError as `check_plan` does."""
    blocks = find_blocks(model)
    check_plan(blocks, plan)
    for block in blocks:
        kept = plan.blocks[block.name].kept
        for module in (block.experts, block.router):
            slice_rows(module, kept, block.expert_count)
    # Counts are also kept by blocks and by the model itself (for its load-balancing loss).
    for module in model.modules():
        for key in EXPERT_KEYS:
            if getattr(module, key, None) == blocks[0].expert_count and not isinstance(
                getattr(type(module), key, None), property
            ):
                setattr(module, key, plan.keep)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        _set_count(config, plan.keep)
    return model


def _set_count(config: Any, keep: int) -> None:
    for key in EXPERT_KEYS:
        if isinstance(getattr(config, key, None), int):  # attribute_map resolves each family's own spelling
            setattr(config, key, keep)
