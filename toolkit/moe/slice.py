"""Cut a model in memory down to the experts of a plan."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.blocks import EXPERT_KEYS, TOP_K_KEYS, activate, find_blocks, set_numbers
from toolkit.moe.check import check_plan
from toolkit.plan import Plan

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
        set_numbers(router.config, EXPERT_KEYS, len(kept))
    activate(router, experts_per_token)


def slice_model(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Removes the pruned experts from `model` in place and returns it. Raises PollardError as `check_plan` does."""
    blocks = find_blocks(model)
    check_plan(blocks, plan)
    for block in blocks:
        kept = plan.blocks[block.name].kept
        for module in (block.module, block.experts):  # some blocks hold the router's correction bias
            slice_tensors(module, kept, block.expert_count, {block.expert_count})
        slice_router(block.router, kept, block.expert_count, plan.experts_per_token)
    # Counts are also kept by blocks and by the model itself (for its load-balancing loss).
    old, new = blocks[0], plan
    for module in model.modules():
        for keys, was, becomes in (
            (EXPERT_KEYS, old.expert_count, new.keep),
            (("top_k", *TOP_K_KEYS), old.experts_per_token, new.experts_per_token),
        ):
            for key in keys:
                if getattr(module, key, None) == was and not isinstance(getattr(type(module), key, None), property):
                    setattr(module, key, becomes)
    configs = [model.config, model.config.get_text_config(), *(block.experts.config for block in blocks)]
    for config in {id(config): config for config in configs}.values():
        set_numbers(config, EXPERT_KEYS, plan.keep)
        set_numbers(config, TOP_K_KEYS, plan.experts_per_token)
    return model
