"""How large a model is, in parameters and in bytes on disk."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.moe.blocks import find_blocks
from toolkit.moe.load import meta_model


class Sizes(NamedTuple):
    parameters: int
    active_parameters: int  # per token: everything but the experts that are not chosen


def sizes(model: PreTrainedModel) -> Sizes:
    """Counts tied parameters once."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for block in find_blocks(model):
        experts = sum(p.numel() for p in block.experts.parameters())
        idle += experts - experts * block.experts_per_token // block.expert_count
    return Sizes(total, total - idle)


def checkpoint_bytes(folder: str | Path) -> int | None:
    """Bytes of the weight files in a local folder; None for a hub id."""
    folder = Path(folder)
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else None


def weight_bytes(config: Any, dtype: str = "checkpoint") -> int:
    """Bytes of the weights in memory, from the configuration alone."""
    number = config.dtype if dtype in ("checkpoint", "auto") else getattr(torch, dtype)
    return sum(p.numel() for p in meta_model(config).parameters()) * (number or torch.float32).itemsize
