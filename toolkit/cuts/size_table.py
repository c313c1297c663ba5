"""The size of every stock shape of a model, exactly, from a few models without weights.

With all else equal, every tensor grows linearly with the number of experts, and with their width. So the corners (few and all
experts, narrow and wide ones) decide the sizes between them, part by part: each decoder layer, and the rest. In the dense form
all feed-forward layers have one width, which grows so, too, and their tensors grow linearly with it.

Of a checkpoint on this machine the bytes are those of its files' tensors, whatever their types: quantized weights and scales.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from operator import mul
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan
from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.dense_twins import dense_twin
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.plan import Plan
from toolkit.cuts.shape import ModelShape, plan_of_shape
from toolkit.cuts.writer import plan_prune
from toolkit.moe.blocks import blocks_in, find_blocks
from toolkit.moe.channels import expert_width
from toolkit.moe.layers import decoder_layers
from toolkit.moe.load import meta_model, resolve_dtype
from toolkit.moe.masking import fewest_experts
from toolkit.moe.model_files import checkpoint_files
from toolkit.moe.names import NameResolver

REST = -1  # what is in no decoder layer


class PartSize(NamedTuple):
    """Of a model, or of a part of one."""

    parameters: int = 0
    experts: int = 0  # parameters of all routed experts
    bytes: int = 0


class FitSize(NamedTuple):
    """Of a shape."""

    parameters: int
    active_parameters: int  # per token
    bytes: int  # of the tensors on disk


class Corner(NamedTuple):
    """The sizes of one shape with all layers; by decoder layer, and REST."""

    parts: Mapping[int, PartSize]
    channels: Mapping[int, int]  # in the dense form: of a feed-forward layer, had it no other beside it


class SizeTable:
    """Sizes of the shapes of one model in one form. Raises PollardError where the model cannot be cut so at all."""

    def __init__(
        self,
        config: Any,
        form: Literal["moe", "dense"] = "moe",
        dtype: str = "checkpoint",
        folder: str | Path | None = None,
        narrower: bool = True,
    ) -> None:
        """`dtype`: in which bytes are counted, as in `FitRecipe`. `folder`: the checkpoint's, where it is on this machine.
        `narrower`: whether shapes have narrower experts, which not every model can have."""
        self.config, self.form = config, form
        self.itemsize = (resolve_dtype(dtype, config) or torch.float32).itemsize
        self.folder = Path(folder) if folder is not None and dtype == "checkpoint" and form == "moe" else None
        model = meta_model(config)
        blocks, self.width, self.depth = find_blocks(model), expert_width(model), len(decoder_layers(model)[1])
        self.experts, self.active, self.groups = blocks[0].expert_count, blocks[0].experts_per_token, blocks[0].groups or 1
        self.fewest_experts = fewest_experts(blocks)
        few = max(self.fewest_experts, self.experts // 2 // self.groups * self.groups)
        self._experts = sorted({min(few, self.experts), self.experts})
        self._widths = sorted({max(1, self.width // 2), self.width}) if narrower else [self.width]
        self._corners = [self._corner(*counts) for counts in product(self._experts, self._widths)]
        self._sums = lru_cache(maxsize=None)(self._sums_over)

    def size(self, shape: FitShape, kept_layers: Sequence[int]) -> FitSize:
        """Of the shape, whose layers are these of the original's."""
        sums = self._sums(tuple(kept_layers))
        if self.form == "dense":
            ends = self._corners[0], self._corners[-1]
            narrow, wide = (max(corner.channels.values()) for corner in ends)
            weights = _weights([narrow, wide], self._channels(shape, kept_layers))
            parameters, _, size = _mean([sums[0], sums[-1]][-len(weights) :], weights)
            return FitSize(parameters, parameters, size)
        parameters, experts, size = _mean(sums, self._corner_weights(shape))
        return FitSize(parameters, parameters - experts + experts * shape.experts_per_token // shape.experts, size)

    def _sums_over(self, kept_layers: tuple[int, ...]) -> list[PartSize]:
        """Of the model with these layers, at every corner."""
        parts = (REST, *kept_layers)
        return [
            PartSize(*map(sum, zip(*(corner.parts.get(part, PartSize()) for part in parts), strict=True)))
            for corner in self._corners
        ]

    def _channels(self, shape: FitShape, kept_layers: Sequence[int]) -> int:
        """Of every feed-forward layer in the dense form: as many as the widest needs."""
        weights = self._corner_weights(shape)
        needed = {tuple(corner.channels.get(layer, 0) for corner in self._corners) for layer in kept_layers}
        return max(_mean([[value] for value in values], weights)[0] for values in needed)

    def _corner_weights(self, shape: FitShape) -> list[int]:
        along_experts, along_width = _weights(self._experts, shape.experts), _weights(self._widths, shape.width)
        return [one * other for one in along_experts for other in along_width]

    def _corner(self, experts: int, width: int) -> Corner:
        model = meta_model(copy.deepcopy(self.config))
        path = decoder_layers(model)[0]

        def part_of(name: str) -> int:
            inside = name.startswith(f"{path}.")
            return int(name.removeprefix(f"{path}.").partition(".")[0]) if inside else REST

        plan = plan_of_shape(model, ModelShape(experts, None if width == self.width else width))
        apply_plan(model, plan)
        parameters, in_experts, channels = Counter[int](), Counter[int](), dict[int, int]()
        for block in blocks_in(model):
            in_experts[part_of(block.experts_name)] += sum(p.numel() for p in block.experts.parameters())
        if self.form == "dense":
            twin = dense_twin(model)
            channels, model = {part_of(name): width for name, width in twin.own_widths.items()}, twin.model
        for name, parameter in model.named_parameters():
            parameters[part_of(name)] += parameter.numel()
        stored = self._stored(model, plan, part_of) or {part: self.itemsize * number for part, number in parameters.items()}
        parts = {part: PartSize(parameters[part], in_experts[part], stored[part]) for part in parameters}
        return Corner(parts, channels)

    def _stored(self, model: PreTrainedModel, plan: Plan, part_of: Callable[[str], int]) -> Counter[int] | None:
        """Bytes of the tensors that the pruned checkpoint of `model`, to which `plan` was applied, has, by part; None where there
        are no files to copy tensors of."""
        if self.folder is None or not checkpoint_files(self.folder).safetensors:
            return None
        try:
            job = plan_prune(self.folder, plan)
        except UnknownLayoutError:  # transformers writes it then: every parameter, in the model's own numbers
            return None
        names, found = NameResolver(model), Counter[int]()
        for piece in (piece for pieces in job.shards.values() for piece in pieces):
            destination = names.resolve(piece.name)
            found[part_of(destination[1].parameters[0]) if destination else REST] += piece.bytes
        return found


def _weights(ends: Sequence[int], at: int) -> list[int]:
    """Of the values at `ends` (one or two numbers), in proportion, for the value on their line at `at`."""
    low, high = ends[0], ends[-1]
    return [1] if low == high else [high - at, at - low]


def _mean(rows: Sequence[Sequence[int]], weights: Sequence[int]) -> list[int]:
    """Column by column; whole numbers where the columns are linear."""
    total = sum(weights)
    return [sum(map(mul, column, weights)) // total for column in zip(*rows, strict=True)]
