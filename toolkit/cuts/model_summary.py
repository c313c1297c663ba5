"""The size of a model and of what pruning would leave, from its configuration and the headers of its files."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.shape import ModelShape, plan_of_shape, shaped_meta_model
from toolkit.cuts.writer import plan_prune
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.load import load_config, meta_model, quantization_of
from toolkit.moe.masking import check_prunable
from toolkit.moe.model_size import Sizes, sizes
from toolkit.runtime.errors import PollardError

SUMMARY_FRACTIONS = (0.75, 0.5, 0.25, 0.125)  # of the experts kept, in the table of sizes


@dataclass(frozen=True)
class StoredWeights:
    """What the headers of a checkpoint's files say of its tensors."""

    bytes: int
    dtypes: dict[str, int]  # safetensors' name of a number format -> bytes in it, the most first
    pruned: dict[int, int]  # experts kept per block -> bytes that pruning would write


@dataclass(frozen=True)
class ModelSummary:
    """The numbers of an MoE model; parameters are counted once where they are tied."""

    family: str
    blocks: int
    experts: int  # per block
    experts_per_token: int
    groups: int
    groups_per_token: int
    parameters: int
    active_parameters: int
    expert_parameters: int
    shared_parameters: int  # in shared experts, which serve every token and are never pruned
    dtype: torch.dtype  # that the model is computed in; of a checkpoint that is not quantized, also that of its files
    quantization: str | None  # how the weights are quantized, or None
    pruned: dict[int, Sizes]  # experts kept per block -> what is left
    stored: StoredWeights | None = None  # None where there are no files at hand

    @property
    def bytes_per_parameter(self) -> int:
        return self.dtype.itemsize


def model_summary(path: str) -> ModelSummary:
    """Opens the configuration of a checkpoint folder or hub model, and the headers of a folder's files; no weights. Raises
    PollardError for a dense model, and for files that are not what the configuration describes."""
    found = summary_of(load_config(path))
    return replace(found, stored=_stored(Path(path), found))


def _stored(folder: Path, found: ModelSummary) -> StoredWeights | None:
    """None where there are no files at hand, or they cannot be cut without loading them. What pruning would write for one number
    of experts says what it would write for every other: each expert takes as much."""
    keep = next(iter(found.pruned), found.experts)
    model = meta_model(load_config(str(folder))) if folder.is_dir() else None
    if model is None:
        return None
    try:
        job = plan_prune(folder, plan_of_shape(model, ModelShape(experts=keep)))
    except UnknownLayoutError:  # no safetensors files, or their names do not say which expert is where
        return None
    dtypes: Counter[str] = Counter()
    for tensor in job.stored.values():
        dtypes[tensor.dtype] += tensor.bytes
    kept = sum(piece.bytes for pieces in job.shards.values() for piece in pieces)
    whole = sum(tensor.bytes for name, tensor in job.stored.items() if name not in set(job.left_out))
    each = (whole - kept) / (found.experts - keep) if keep < found.experts else 0.0  # of an expert in every block
    pruned = {number: round(kept + each * (number - keep)) for number in found.pruned}
    return StoredWeights(dtypes.total(), dict(dtypes.most_common()), pruned)


def summary_of(config: Any) -> ModelSummary:
    """The summary of a configuration, without files; seconds for any size, since nothing is allocated."""
    model = meta_model(config)
    blocks = find_blocks(model)
    block, total = blocks[0], sizes(model)
    keeps = [round(share * block.expert_count) for share in SUMMARY_FRACTIONS]
    return ModelSummary(
        family=config.model_type, blocks=len(blocks), experts=block.expert_count, experts_per_token=block.experts_per_token,
        groups=block.groups or 1, groups_per_token=block.groups_per_token, parameters=total.parameters,
        active_parameters=total.active_parameters,
        expert_parameters=sum(p.numel() for b in blocks for p in b.experts.parameters()),
        shared_parameters=sum(_shared(b) for b in blocks), dtype=config.dtype or torch.float32,
        quantization=quantization_of(config),
        pruned={keep: _sizes_with(config, keep) for keep in dict.fromkeys(keeps) if _possible(blocks, keep)},
    )  # fmt: skip


def _shared(block: MoEBlock) -> int:
    modules = [child for name, child in block.module.named_children() if name.startswith("shared")]
    return sum(p.numel() for module in modules for p in module.parameters())


def _possible(blocks: list[MoEBlock], keep: int) -> bool:
    try:
        check_prunable(blocks, keep, min(keep, blocks[0].experts_per_token))
    except PollardError:
        return False
    return keep > 0


def _sizes_with(config: Any, keep: int) -> Sizes:
    return sizes(shaped_meta_model(config, ModelShape(experts=keep)))
