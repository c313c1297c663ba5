"""The size of every stock shape of a model, exactly, from a few models without weights.

With all else equal, every tensor grows linearly with the number of experts, and with their width. So four corners (few and all
experts, narrow and wide) decide the sizes between them, part by part: each decoder layer, and the rest. A fifth shape is counted
to see that it is so; where it is not, every shape that is asked for is built.

Of a checkpoint on this machine the bytes are those of its files' tensors, whatever their types: quantized weights and scales.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.dense_twins import dense_twin
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.shape import ModelShape, plan_of_shape, shape_size, shaped_meta_model, without_last
from toolkit.cuts.writer import plan_prune
from toolkit.moe.blocks import blocks_in
from toolkit.moe.channels import expert_width
from toolkit.moe.layers import decoder_layers
from toolkit.moe.load import meta_model, resolve_dtype
from toolkit.moe.model_files import checkpoint_files
from toolkit.moe.names import NameResolver
from toolkit.runtime.errors import PollardError

REST = -1  # what is in no decoder layer


class PartSize(NamedTuple):
    """Of a model, or of a part of one."""

    parameters: int = 0
    experts: int = 0  # parameters of all routed experts
    bytes: int = 0

    def plus(self, other: "PartSize") -> "PartSize":
        return PartSize(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class FitSize(NamedTuple):
    parameters: int
    active_parameters: int  # per token
    bytes: int  # of the tensors on disk


Parts = Mapping[int, PartSize]  # by decoder layer; REST


class SizeTable:
    """Sizes of the shapes of one model in one form. Raises PollardError where the model cannot be cut so at all."""

    def __init__(
        self,
        config: Any,
        form: Literal["moe", "dense"] = "moe",
        dtype: str = "checkpoint",
        folder: str | Path | None = None,
    ) -> None:
        """`dtype`: in which bytes are counted, as in `FitRecipe`. `folder`: the checkpoint's, where it is on this machine."""
        self.config, self.form = config, form
        number = resolve_dtype(dtype, config) or torch.float32
        self.itemsize, stored = number.itemsize, dtype == "checkpoint" and form == "moe" and folder is not None
        self.folder = Path(folder) if stored and folder and checkpoint_files(Path(folder)).safetensors else None
        model = meta_model(config)
        whole = shape_size(model)
        self.groups = blocks_in(model)[0].groups or 1
        self.depth, self.experts, self.active = whole.layers, whole.experts, whole.experts_per_token
        self.width = expert_width(model)
        self._built: dict[FitShape, FitSize] = {}
        few, narrow = max(self.groups, self.experts // 2 // self.groups * self.groups), max(1, self.width // 2)
        self._few, self._narrow = min(few, self.experts), narrow
        self._corners = {(e, w): self._parts(e, w) for e in {self._few, self.experts} for w in {narrow, self.width}}
        self.is_linear = self._agrees()

    def size(self, shape: FitShape, kept_layers: Sequence[int]) -> FitSize:
        """Of the shape, whose layers are these of the original's."""
        if not self.is_linear:
            return self._build(shape, kept_layers)
        return self._counted(shape, kept_layers)

    def _counted(self, shape: FitShape, kept_layers: Sequence[int]) -> FitSize:
        parts = [self._between(part, shape.experts, shape.width) for part in (REST, *kept_layers)]
        total = PartSize()
        for part in parts:
            total = total.plus(part)
        chosen = sum(part.experts * shape.experts_per_token // shape.experts for part in parts)
        active = total.parameters if self.form == "dense" else total.parameters - total.experts + chosen
        return FitSize(total.parameters, active, total.bytes)

    def _between(self, part: int, experts: int, width: int) -> PartSize:
        """By bilinear interpolation in whole numbers."""
        few, narrow, corners = self._few, self._narrow, self._corners
        e_step, w_step = self.experts - few, self.width - narrow

        def along_width(at: int) -> list[tuple[int, int]]:
            """Numerators and their denominator."""
            low, high = corners[at, narrow].get(part, PartSize()), corners[at, self.width].get(part, PartSize())
            if not w_step:
                return [(value, 1) for value in high]
            return [(a * (self.width - width) + b * (width - narrow), w_step) for a, b in zip(low, high, strict=True)]

        upper = along_width(self.experts)
        if not e_step:
            return PartSize(*(value // by for value, by in upper))
        lower = along_width(few)
        return PartSize(
            *(
                (a * (self.experts - experts) + b * (experts - few)) // (by * e_step)
                for (a, by), (b, _) in zip(lower, upper, strict=True)
            )
        )

    def _parts(self, experts: int, width: int) -> Parts:
        """Of the model with all layers, so many experts and so wide."""
        shape = ModelShape(experts, width if width < self.width else None, None, min(self.active, experts))
        model = shaped_meta_model(self.config, shape)
        if self.form == "dense":
            model = dense_twin(model).model
        path, _ = decoder_layers(model)

        def part_of(name: str) -> int:
            return int(name.removeprefix(f"{path}.").partition(".")[0]) if name.startswith(f"{path}.") else REST

        found: dict[int, PartSize] = defaultdict(PartSize)
        for name, parameter in model.named_parameters():
            part, number = part_of(name), parameter.numel()
            found[part] = found[part].plus(PartSize(number, 0, 0 if self.folder else number * self.itemsize))
        for block in blocks_in(model):
            part, number = part_of(f"{block.name}."), sum(p.numel() for p in block.experts.parameters())
            found[part] = found[part].plus(PartSize(0, number, 0))
        for part, size in self._stored(model, shape, part_of).items():
            found[part] = found[part].plus(PartSize(0, 0, size))
        return dict(found)

    def _stored(self, model: PreTrainedModel, shape: ModelShape, part_of: Callable[[str], int]) -> dict[int, int]:
        """Bytes of the tensors that a pruned checkpoint of that shape has, by part; none where they are not counted so."""
        if self.folder is None:
            return {}
        try:
            job = plan_prune(self.folder, plan_of_shape(meta_model(self.config), shape))
        except UnknownLayoutError:  # written by transformers then, one number per parameter
            return {part_of(name): 0 for name, _ in model.named_parameters()} | _summed(
                (part_of(name), p.numel() * self.itemsize) for name, p in model.named_parameters()
            )
        names = NameResolver(model)
        places = ((piece, names.resolve(piece.name)) for pieces in job.shards.values() for piece in pieces)
        return _summed((part_of(found[1].parameters[0]) if found else REST, piece.bytes) for piece, found in places)

    def _agrees(self) -> bool:
        """Whether a shape that is no corner, with fewer layers where the model can do with them, is as large as it is counted."""
        layers = list(without_last(max(1, self.depth // 2), self.depth))
        experts = max(self.groups, self._few // 2 // self.groups * self.groups)
        shape = FitShape(len(layers), experts, max(1, self._narrow // 2), min(self.active, experts), self.form)
        try:
            built = self._build(shape, layers)
        except PollardError:  # it cannot do with these layers, or so narrow: shapes that are no shapes are refused elsewhere
            return True
        counted = self._counted(shape, layers)
        return built[:2] == counted[:2]

    def _build(self, shape: FitShape, kept_layers: Sequence[int]) -> FitSize:
        if shape not in self._built:
            layers = None if len(kept_layers) == self.depth else tuple(kept_layers)
            wanted = ModelShape(shape.experts, shape.width if shape.width < self.width else None, layers, shape.experts_per_token)
            model = shaped_meta_model(self.config, wanted)
            if self.form == "dense":
                model = dense_twin(model).model
            found = shape_size(model) if self.form == "moe" else None
            parameters = sum(p.numel() for p in model.parameters())
            active = found.active_parameters if found else parameters
            self._built[shape] = FitSize(parameters, active, parameters * self.itemsize)
        return self._built[shape]


def _summed(pairs: Any) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for part, size in pairs:
        found[part] += size
    return dict(found)
