"""How large a model is, in parameters and in bytes on disk."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.moe.blocks import blocks_in
from toolkit.moe.load import load_config, meta_model, resolve_dtype
from toolkit.moe.model_files import checkpoint_files
from toolkit.runtime.errors import PollardError


class Sizes(NamedTuple):
    parameters: int
    active_parameters: int  # per token: everything but the experts that are not chosen


def sizes(model: PreTrainedModel) -> Sizes:
    """Total and active parameters of a model; tied ones count once. Of a dense model all are active."""
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for block in blocks_in(model) for p in block.experts.parameters())
    return Sizes(total, total - experts + active_expert_parameters(model))


def active_expert_parameters(model: PreTrainedModel) -> int:
    """Parameters of the experts that a token activates, summed over all blocks."""
    blocks = [(block, sum(p.numel() for p in block.experts.parameters())) for block in blocks_in(model)]
    return sum(experts * block.experts_per_token // block.expert_count for block, experts in blocks)


def checkpoint_bytes(path: str | Path, revision: str | None = None) -> int:
    """Bytes of the weights on disk: of the files of a local folder, or what the configuration of a hub model makes them.

    Raises PollardError where a file that is part of the model is missing."""
    if Path(path).is_dir():
        try:
            return sum(file.stat().st_size for file in checkpoint_files(path).weights)
        except OSError as error:
            raise PollardError(
                f"Cannot read {error.filename}: {error.strerror}. Is the checkpoint complete?", code="checkpoint.missing-file"
            ) from None
    return weight_bytes(load_config(str(path), revision))


def weight_bytes(config: Any, dtype: str = "checkpoint") -> int:
    """Bytes of the weights in memory, as `load_model` holds them, from the configuration alone."""
    number = resolve_dtype(dtype, config) or torch.float32
    return sum(p.numel() for p in meta_model(config).parameters()) * number.itemsize
