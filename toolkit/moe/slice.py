"""Cut a model in memory down to the experts of a plan."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from toolkit.moe.blocks import EXPERT_KEYS, activate, set_numbers

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
