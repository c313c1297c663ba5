"""The size of a model and of what pruning would leave, from its configuration and the headers of its files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.shape import ModelShape, plan_of_shape, shaped_meta_model, without_last
from toolkit.cuts.width_counts import channels_to_keep
from toolkit.cuts.writer import PruneJob, plan_prune
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.channels import expert_width
from toolkit.moe.layers import layers_of
from toolkit.moe.load import load_config, meta_model, quantization_of
from toolkit.moe.masking import check_prunable
from toolkit.moe.model_size import Sizes, sizes
from toolkit.runtime.errors import PollardError

EXPERT_FRACTIONS = (0.75, 0.5, 0.25, 0.125)  # of what stays, in the table of sizes
FRACTIONS = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class CutSizes:
    """What cuts of one kind would leave, by the number that stays."""

    kind: str  # "experts", "width" or "layers"
    of: int | None  # how many there are; None where they cannot be counted
    shapes: dict[int, ModelShape] = field(default_factory=dict)
    sizes: dict[int, Sizes] = field(default_factory=dict)
    stored: dict[int, int] = field(default_factory=dict)  # bytes of the tensors that would be written; empty without files
    refusal: str | None = None  # why this model cannot be cut so


@dataclass(frozen=True)
class StoredWeights:
    """What the headers of a checkpoint's files say of its tensors."""

    bytes: int
    dtypes: dict[str, int]  # safetensors' name of a number format -> bytes in it, the most first


@dataclass(frozen=True)
class ModelSummary:
    """The numbers of an MoE model; parameters are counted once where they are tied."""

    family: str
    blocks: int
    experts: int  # per block
    experts_per_token: int
    groups: int
    groups_per_token: int
    layers: int | None  # None where its blocks are in no one list
    width: int | None  # channels per expert; None where blocks differ
    parameters: int
    active_parameters: int
    expert_parameters: int
    shared_parameters: int  # in shared experts, which serve every token and are never removed
    dtype: torch.dtype  # that the model is computed in; of a checkpoint that is not quantized, also that of its files
    quantization: str | None  # how the weights are quantized, or None
    cuts: dict[str, CutSizes]  # by kind
    stored: StoredWeights | None = None  # None where there are no files at hand

    @property
    def bytes_per_parameter(self) -> int:
        return self.dtype.itemsize


def model_summary(path: str) -> ModelSummary:
    """Opens the configuration of a checkpoint folder or hub model, and the headers of a folder's files; no weights. Raises
    PollardError for a dense model, and for files that are not what the configuration describes."""
    config = load_config(path)
    found = summary_of(config)
    if not Path(path).is_dir():
        return found
    folder, model = Path(path), meta_model(config)
    try:
        job = _job(folder, model, next(iter(found.cuts["experts"].shapes.values()), ModelShape(experts=found.experts)))
    except UnknownLayoutError:  # no safetensors files, or their names do not say which expert is where
        return found
    dtypes: Counter[str] = Counter()
    for tensor in job.stored.values():
        dtypes[tensor.dtype] += tensor.bytes
    cuts = {kind: replace(cut, stored=_stored(folder, model, cut, job)) for kind, cut in found.cuts.items()}
    return replace(found, stored=StoredWeights(dtypes.total(), dict(dtypes.most_common())), cuts=cuts)


def _job(folder: Path, model: PreTrainedModel, shape: ModelShape) -> PruneJob:
    return plan_prune(folder, plan_of_shape(model, shape))


def _stored(folder: Path, model: PreTrainedModel, cut: CutSizes, job: PruneJob) -> dict[int, int]:
    """The bytes of the tensors that pruning would write. What it writes for one number of experts, or of channels, says what it
    writes for every other: each takes as much. Layers differ. Empty where the files do not say it."""
    whole = sum(tensor.bytes for name, tensor in job.stored.items() if name not in set(job.left_out))
    measured = dict(list(cut.shapes.items()) if cut.kind == "layers" else list(cut.shapes.items())[:1])
    try:
        jobs = {number: job if cut.kind == "experts" else _job(folder, model, shape) for number, shape in measured.items()}
    except (UnknownLayoutError, PollardError):
        return {}
    bytes_of = {number: sum(piece.bytes for pieces in job.shards.values() for piece in pieces) for number, job in jobs.items()}
    if cut.kind == "layers" or not cut.of:
        return bytes_of
    return {number: round(left) for known, kept in bytes_of.items() for number, left in _line(cut, known, kept, whole).items()}


def _line(cut: CutSizes, known: int, left: float, whole: float) -> dict[int, float]:
    """What is left for every number, from what is left for one and from the whole."""
    assert cut.of is not None
    each = (whole - left) / (cut.of - known)
    return {number: left + each * (number - known) for number in cut.shapes}


def summary_of(config: Any) -> ModelSummary:
    """The summary of a configuration, without files; seconds for any size, since nothing is allocated."""
    model = meta_model(config)
    blocks = find_blocks(model)
    block, total = blocks[0], sizes(model)
    cuts = {
        cut.kind: cut for cut in (_fewer_experts(config, blocks), _narrower(config, model, total), _fewer_layers(config, model))
    }
    return ModelSummary(
        family=config.model_type, blocks=len(blocks), experts=block.expert_count, experts_per_token=block.experts_per_token,
        groups=block.groups or 1, groups_per_token=block.groups_per_token, layers=cuts["layers"].of, width=cuts["width"].of,
        parameters=total.parameters, active_parameters=total.active_parameters,
        expert_parameters=sum(p.numel() for b in blocks for p in b.experts.parameters()),
        shared_parameters=sum(_shared(b) for b in blocks), dtype=config.dtype or torch.float32,
        quantization=quantization_of(config), cuts=cuts,
    )  # fmt: skip


def _shared(block: MoEBlock) -> int:
    modules = [child for name, child in block.module.named_children() if name.startswith("shared")]
    return sum(p.numel() for module in modules for p in module.parameters())


def _numbers(numbers: Iterable[int], of: int) -> list[int]:
    return [number for number in dict.fromkeys(numbers) if 0 < number < of]


def _fewer_experts(config: Any, blocks: list[MoEBlock]) -> CutSizes:
    of, refusal = blocks[0].expert_count, None
    shapes = {}
    for keep in _numbers((round(share * of) for share in EXPERT_FRACTIONS), of):
        try:
            check_prunable(blocks, keep, min(keep, blocks[0].experts_per_token))
        except PollardError as error:
            refusal = refusal or _short(error)
        else:
            shapes[keep] = ModelShape(experts=keep)
    left = {keep: _sizes_with(config, shape) for keep, shape in shapes.items()}
    return CutSizes("experts", of, shapes, left, refusal=None if shapes else refusal)


def _narrower(config: Any, model: PreTrainedModel, whole: Sizes) -> CutSizes:
    """One width is cut, and says what the others leave."""
    try:
        of = expert_width(model)
    except PollardError as error:
        return CutSizes("width", None, refusal=_short(error))
    shapes = {keep: ModelShape(width=keep) for keep in _numbers((channels_to_keep(share, of) for share in FRACTIONS), of)}
    cut = CutSizes("width", of, shapes)
    if not shapes:
        return cut
    known = min(shapes, key=lambda keep: abs(2 * keep - of))
    try:
        left = _sizes_with(config, shapes[known])
    except PollardError as error:
        return CutSizes("width", of, refusal=_short(error))
    lines = [_line(cut, known, left[at], whole[at]) for at in range(len(whole))]
    exact = {keep: [line[keep] for line in lines] for keep in shapes}
    sizes_left = {keep: Sizes(*map(round, numbers)) for keep, numbers in exact.items() if _whole(numbers)}
    return replace(cut, shapes={keep: shapes[keep] for keep in sizes_left}, sizes=sizes_left)


def _whole(numbers: Iterable[float]) -> bool:
    """Whether every MLP on the same key can follow: there is no half of a channel."""
    return all(number == round(number) for number in numbers)


def _fewer_layers(config: Any, model: PreTrainedModel) -> CutSizes:
    try:
        of = len(layers_of(model, find_blocks(model))[1])
    except PollardError as error:
        return CutSizes("layers", None, refusal=_short(error))
    shapes, left, refusal = {}, {}, None
    for keep in _numbers((round(share * of) for share in FRACTIONS), of):
        # Without the last before the final one; or the first ones, where what a layer is follows from its number
        for kept in (without_last(keep, of), tuple(range(keep))):
            try:
                left[keep] = _sizes_with(config, ModelShape(layers=kept))
            except PollardError as error:
                refusal = refusal or _short(error)
            else:
                shapes[keep] = ModelShape(layers=kept)
                break
    return CutSizes("layers", of, shapes, left, refusal=None if shapes else refusal)


def _short(error: PollardError) -> str:
    """The first sentence of a refusal."""
    return str(error).partition(". ")[0].rstrip(".")


def _sizes_with(config: Any, shape: ModelShape) -> Sizes:
    return sizes(shaped_meta_model(config, shape))
