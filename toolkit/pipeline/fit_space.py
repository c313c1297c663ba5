"""The shapes that `pruning.fit` leaves to choose from, from the model's configuration (and its files' headers) alone."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from toolkit.cuts import ModelShape, plan_of_shape, shaped_meta_model
from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import FitSize, SizeTable
from toolkit.cuts.width_counts import width_multiple
from toolkit.cuts.writer import plan_prune
from toolkit.estimate import ModelSize
from toolkit.estimate.machine import USABLE
from toolkit.moe import meta_model
from toolkit.moe.tensor_files import file_bytes
from toolkit.pipeline.layer_refusal import refusal_of
from toolkit.recipe.fit import FitRecipe
from toolkit.recipe.pruning import PruningRecipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import amount, size
from toolkit.selection import LayerEvidence, choose_layers
from toolkit.selection.fit import AxisValues, Candidate, Limit, axis_values, check_possible, shapes_within

Form = Literal["moe", "dense"]
LAYERS_BY_POSITION = "top"  # which layers go, until it is measured: of most models all are of one size


class FitSpace:
    """The shapes of one model under the limits of one recipe."""

    def __init__(self, config: Any, pruning: PruningRecipe, path: str) -> None:
        """`path`: of the model; where it is a folder, bytes are those of its files. Raises PollardError for a model that cannot
        be cut in a way that `fit.cuts` names."""
        assert pruning.fit, "the recipe says its shape"
        self.config, self.fit = config, pruning.fit
        self.folder = Path(path) if path and Path(path).is_dir() else None
        self.forms: tuple[Form, ...] = ("moe", "dense") if "dense" in self.fit.cuts else ("moe",)
        self.tables = {form: SizeTable(config, form, self.fit.dtype, self.folder) for form in self.forms}
        self.model = meta_model(config)
        self.multiple = pruning.width_multiple or width_multiple(self.tables["moe"].width)
        self.by_position = self._layers_by_position()
        self.values = self._values()
        self._caches: dict[int, int] = {}

    def _values(self) -> AxisValues:
        table, cuts = self.tables["moe"], self.fit.cuts
        layers = axis_values(table.depth, least=min(self.by_position)) if "layers" in cuts else [table.depth]
        experts = axis_values(table.experts, table.groups) if "experts" in cuts else [table.experts]
        width = [*range(self.multiple, table.width, self.multiple), table.width] if "width" in cuts else [table.width]
        active = list(range(1, table.active + 1)) if self.fit.active else [table.active]
        return AxisValues(layers, experts, width, active)

    def _layers_by_position(self) -> Mapping[int, Sequence[int]]:
        """By how many layers stay, which: the last ones before the final one go first, where the model can do without them."""
        depth = self.tables["moe"].depth
        found: dict[int, Sequence[int]] = {depth: list(range(depth))}
        evidence = LayerEvidence(depth, refusal_of(self.model))
        for number in range(depth - 1, 0, -1) if "layers" in self.fit.cuts else ():
            try:
                found[number] = choose_layers(LAYERS_BY_POSITION, number, evidence).kept
            except PollardError:  # too few can go
                break
        return found

    def size(self, shape: FitShape, kept_layers: Mapping[int, Sequence[int]] | None = None) -> FitSize:
        """`kept_layers`: by how many stay, which; unless given, by position."""
        found = self.tables[shape.form].size(shape, (kept_layers or self.by_position)[shape.layers])
        return found._replace(bytes=found.bytes + self._headers)

    @cached_property
    def _headers(self) -> int:
        """Bytes of the files' headers, at most: those of the original have more tensors, and longer numbers, than any shape's."""
        if self.folder is None or self.fit.dtype != "checkpoint":
            return 0
        try:
            job = plan_prune(self.folder, plan_of_shape(self.model, ModelShape()))
        except UnknownLayoutError:  # transformers writes the files then
            return 0
        return sum(file_bytes(pieces) - sum(piece.bytes for piece in pieces) for pieces in job.shards.values())

    @cached_property
    def limits(self) -> list[Limit]:
        """Raises PollardError where the cache alone does not fit a GPU."""
        fit, found = self.fit, []
        if fit.bytes is not None:
            found.append(Limit("bytes", fit.bytes, lambda _, sizes: sizes.bytes, size))
        if fit.parameters is not None:
            found.append(Limit("parameters", fit.parameters, lambda _, sizes: sizes.parameters, amount))
        if fit.active is not None:
            found.append(Limit("active", fit.active, lambda _, sizes: sizes.active_parameters, amount))
        if fit.gpu is not None:
            found.append(Limit("gpu", int(USABLE * fit.gpu), lambda shape, sizes: sizes.bytes + self._beside(shape, fit), size))
        return found

    def _beside(self, shape: FitShape, fit: FitRecipe) -> int:
        """Bytes on the GPU beside the weights: the cache of keys and values, and the workspace of one forward pass."""
        if shape.layers not in self._caches:
            kept = self.by_position[shape.layers]
            layers = None if len(kept) == self.tables["moe"].depth else tuple(kept)
            model = ModelSize(shaped_meta_model(self.config, ModelShape(layers=layers)))
            cache = fit.batch * fit.context * model.cache_per_token
            self._caches[shape.layers] = cache + (model.activations(fit.batch, fit.context) or 0)
        return self._caches[shape.layers]

    def candidates(self, kept_layers: Mapping[int, Sequence[int]] | None = None) -> list[Candidate]:
        """Of every form. Raises PollardError where there is none, or nothing to cut."""

        def size_of(shape: FitShape) -> FitSize:
            return self.size(shape, kept_layers)

        values = self.values
        if kept_layers:
            layers = [number for number in values.layers if number in kept_layers]
            values = AxisValues(layers, values.experts, values.width, values.experts_per_token)
        check_possible(values, size_of, self.limits)
        return [each for form in self.forms for each in shapes_within(values, size_of, self.limits, form)]

    @property
    def largest(self) -> Candidate:
        """What stands for the choice until it is made: no other shape has more parameters."""
        return max(self.candidates(), key=lambda each: (each.size.parameters, each.shape))

    @property
    def original(self) -> FitShape:
        return self.values.original
