"""The size of every stock shape of a model, exactly, from a few models without weights.

With all else equal, every tensor grows linearly with the number of experts, and with their width. So the corners (few and all
experts, narrow and wide ones) decide the sizes between them, part by part: each decoder layer, and the rest. In the dense form
all feed-forward layers have one width, which grows so, too, and their tensors grow linearly with it.

Of a checkpoint on this machine the bytes are those of its files' tensors, whatever their types: quantized weights and scales.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product
from operator import mul
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from toolkit.cuts.apply import apply_plan, check_plan
from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.dense_twins import dense_twin
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.plan import Plan
from toolkit.cuts.shape import ModelShape, plan_of_shape
from toolkit.cuts.writer import plan_prune
from toolkit.moe.blocks import blocks_in, find_blocks
from toolkit.moe.channels import expert_width, narrowed
from toolkit.moe.layers import decoder_layers
from toolkit.moe.load import meta_model, resolve_dtype
from toolkit.moe.masking import fewest_experts
from toolkit.moe.model_files import checkpoint_files
from toolkit.moe.names import NameResolver

REST = -1  # what is in no decoder layer


class FitSize(NamedTuple):
    """Of a shape."""

    parameters: int
    active_parameters: int  # per token
    bytes: int  # of the tensors on disk


class Corner(NamedTuple):
    """One shape with all layers: by decoder layer, and REST."""

    parameters: Counter[int]
    experts: Counter[int]  # parameters of routed experts
    bytes: Counter[int]
    channels: Counter[int]  # in the dense form: of a feed-forward layer, had it no other beside it


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
        stored = folder is not None and dtype == "checkpoint" and form == "moe" and checkpoint_files(Path(folder)).safetensors
        self.folder = Path(folder) if folder is not None and stored else None
        model = meta_model(config)
        blocks, self.width, self.depth = find_blocks(model), expert_width(model), len(decoder_layers(model)[1])
        self.experts, self.active, self.groups = blocks[0].expert_count, blocks[0].experts_per_token, blocks[0].groups or 1
        self.fewest_experts = fewest_experts(blocks)
        few = max(self.fewest_experts, self.experts // 2 // self.groups * self.groups)
        self._experts = sorted({min(few, self.experts), self.experts})
        self._widths = sorted({max(1, self.width // 2), self.width}) if narrower else [self.width]
        if narrower:
            check_plan(model, plan_of_shape(model, ModelShape(width=self._widths[0])))
        self._corners = [self._corner(*counts) for counts in product(self._experts, self._widths)]
        self._sums, self._rows = lru_cache(maxsize=None)(self._sums_over), lru_cache(maxsize=None)(self._rows_over)

    def size(self, shape: FitShape, kept_layers: Sequence[int]) -> FitSize:
        """Of the shape, whose layers are these of the original's."""
        kept, weights = tuple(kept_layers), self._corner_weights(shape)
        sums = self._sums(kept)
        if self.form == "dense":
            channels = max(_mean(zip(each), weights)[0] for each in self._rows(kept, "channels"))
            narrow, wide = (max(self._corners[place].channels.values()) for place in (0, -1))
            weights = _weights([narrow, wide], channels)
            parameters, size = _mean([sums[0], sums[-1]][-len(weights) :], weights)
            return FitSize(parameters, parameters, size)
        parameters, size = _mean(sums, weights)
        active = parameters
        for each, layers in self._rows(kept, "experts").items():
            experts = _mean(zip(each), weights)[0]
            active -= layers * (experts - experts * shape.experts_per_token // shape.experts)
        return FitSize(parameters, active, size)

    def _sums_over(self, kept_layers: tuple[int, ...]) -> list[tuple[int, int]]:
        """Parameters and bytes of the model with these layers, at every corner."""
        parts = (REST, *kept_layers)
        return [(sum(c.parameters[part] for part in parts), sum(c.bytes[part] for part in parts)) for c in self._corners]

    def _rows_over(self, kept_layers: tuple[int, ...], key: Literal["experts", "channels"]) -> Counter[tuple[int, ...]]:
        """What a layer has of it at every corner; how many layers have the same."""
        return Counter(tuple(getattr(corner, key)[layer] for corner in self._corners) for layer in kept_layers)

    def _corner_weights(self, shape: FitShape) -> list[int]:
        along_experts, along_width = _weights(self._experts, shape.experts), _weights(self._widths, shape.width)
        return [one * other for one in along_experts for other in along_width]

    def _corner(self, experts: int, width: int) -> Corner:
        model = meta_model(copy.deepcopy(self.config))
        path = decoder_layers(model)[0]

        def part_of(name: str) -> int:
            inside = name.startswith(f"{path}.")
            return int(name.removeprefix(f"{path}.").partition(".")[0]) if inside else REST

        shape = ModelShape(experts, None if width == self.width else width)
        stored = self._stored(plan_of_shape(model, shape), part_of) if self.folder else None
        if shape.width:  # as the cut leaves it, and faster
            model = narrowed(model, width)[1]
        apply_plan(model, plan_of_shape(model, ModelShape(experts)))
        corner = Corner(Counter(), Counter(), Counter(), Counter())
        for block in blocks_in(model):
            corner.experts[part_of(block.experts_name)] += sum(p.numel() for p in block.experts.parameters())
        if self.form == "dense":
            twin = dense_twin(model)
            model = twin.model
            corner.channels.update({part_of(name): own for name, own in twin.own_widths.items()})
        for name, parameter in model.named_parameters():
            corner.parameters[part_of(name)] += parameter.numel()
            corner.bytes[part_of(name)] += parameter.numel() * self.itemsize
        return corner._replace(bytes=stored) if stored else corner

    def _stored(self, plan: Plan, part_of: Callable[[str], int]) -> Counter[int] | None:
        """Bytes of the tensors that `plan` leaves of the files, by part; None where transformers writes them, every parameter in
        the model's own numbers."""
        assert self.folder
        try:
            job = plan_prune(self.folder, plan)
        except UnknownLayoutError:
            return None
        names, found = NameResolver(job.pruned), Counter[int]()
        for piece in (piece for pieces in job.shards.values() for piece in pieces):
            resolved = names.resolve(piece.name)
            found[part_of(resolved[1].parameters[0]) if resolved else REST] += piece.bytes
        return found


def _weights(ends: Sequence[int], at: int) -> list[int]:
    """Of the values at `ends` (one or two numbers), in proportion, for the value on their line at `at`."""
    low, high = ends[0], ends[-1]
    return [1] if low == high else [high - at, at - low]


def _mean(rows: Iterable[Sequence[int]], weights: Sequence[int]) -> list[int]:
    """Column by column; of what is linear whole numbers."""
    total = sum(weights)
    return [sum(map(mul, column, weights)) // total for column in zip(*rows, strict=True)]
