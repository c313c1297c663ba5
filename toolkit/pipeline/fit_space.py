"""The shapes that `pruning.fit` leaves to choose from, from the model's configuration (and its files' headers) alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from toolkit.cuts import ModelShape, plan_of_shape, without_last
from toolkit.cuts.cut import UnknownLayoutError
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import FitSize, SizeTable
from toolkit.cuts.width_counts import width_multiple
from toolkit.cuts.writer import plan_prune
from toolkit.moe import meta_model
from toolkit.moe.tensor_files import file_bytes
from toolkit.pipeline.fit_memory import AnsweringMemory
from toolkit.pipeline.layer_refusal import refusal_of
from toolkit.recipe.pruning import PruningRecipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import amount, precise_size
from toolkit.selection.fit import AxisValues, Candidate, Limit, axis_values, check_possible, shapes_left_out, shapes_within
from toolkit.selection.fit.shapes import SizeOf

Form = Literal["moe", "dense"]


class FitSpace:
    """The shapes of one model under the limits of one recipe."""

    def __init__(self, config: Any, pruning: PruningRecipe, path: str) -> None:
        """`path`: of the model; where it is a folder, bytes are those of its files. Raises PollardError for a model that cannot
        be cut in a way that `fit.cuts` names."""
        assert pruning.fit, "the recipe says its shape"
        self.config, self.fit = config, pruning.fit
        self.folder = Path(path) if path and Path(path).is_dir() else None
        self.forms: tuple[Form, ...] = ("moe", "dense") if "dense" in self.fit.cuts else ("moe",)
        self.model = meta_model(config)
        self.tables = self._tables()
        self.multiple = pruning.width_multiple or width_multiple(self.tables["moe"].width)
        self.by_position = self._layers_by_position()
        self.values = self._values()
        self.memory = AnsweringMemory(config, self.fit)

    def _tables(self) -> dict[Form, SizeTable]:
        fit, narrower = self.fit, "width" in self.fit.cuts
        try:
            return {form: SizeTable(self.config, form, fit.dtype, self.folder, narrower) for form in self.forms}
        except PollardError as error:
            kind = error.code.partition(".")[0]
            if kind not in fit.cuts:
                raise
            others = ", ".join(cut for cut in fit.cuts if cut != kind)
            raise PollardError(
                f"pruning.fit.cuts names {kind}, and this model cannot be cut so: {error} Of the others: "
                f"pruning.fit.cuts=[{others}].",
                code="fit.cut-refused",
            ) from None

    def _values(self) -> AxisValues:
        table, cuts = self.tables["moe"], self.fit.cuts
        layers = axis_values(table.depth, least=min(self.by_position)) if "layers" in cuts else [table.depth]
        experts = axis_values(table.experts, table.groups, table.fewest_experts) if "experts" in cuts else [table.experts]
        width = [*range(self.multiple, table.width, self.multiple), table.width] if "width" in cuts else [table.width]
        active = list(range(1, table.active + 1)) if self.fit.active else [table.active]
        return AxisValues(layers, experts, width, active)

    def _layers_by_position(self) -> Mapping[int, Sequence[int]]:
        """By how many layers stay, which: the last ones before the final one go first, where the model can do without them."""
        depth, refusal = self.tables["moe"].depth, refusal_of(self.model)
        kept = list(range(depth))
        found: dict[int, Sequence[int]] = {depth: kept}
        if "layers" not in self.fit.cuts:
            return found
        numbers = axis_values(depth)[:-1]
        if not any(refusal(without_last(number, depth)) for number in numbers):
            return {number: without_last(number, depth) for number in numbers} | found
        removable: int | None = depth
        while removable is not None:  # one by one, past those that must stay
            found[len(kept)] = kept = [layer for layer in kept if layer != removable]
            others = ((layer, [each for each in kept if each != layer]) for layer in reversed(kept[:-1]))
            removable = next((layer for layer, rest in others if refusal(rest) is None), None)
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
        fit, found = self.fit, list[Limit]()
        if fit.bytes is not None:
            found.append(Limit("bytes", fit.bytes, lambda _, sizes: sizes.bytes, precise_size))
        if fit.parameters is not None:
            found.append(Limit("parameters", fit.parameters, lambda _, sizes: sizes.parameters, amount))
        if fit.active is not None:
            found.append(Limit("active", fit.active, lambda _, sizes: sizes.active_parameters, amount))
        if fit.gpu is not None:
            found.append(Limit("gpu", fit.gpu, self._gpu_memory, precise_size))
        return found

    def _gpu_memory(self, shape: FitShape, sizes: FitSize) -> int:
        return self.memory.needed(shape, self.by_position[shape.layers], sizes.parameters)

    def candidates(self, kept_layers: Mapping[int, Sequence[int]] | None = None) -> list[Candidate]:
        """Of every form. Raises PollardError where there is none, or nothing to cut."""
        values, size_of = self._counted(kept_layers)
        check_possible(values, size_of, self.limits)
        return [each for form in self.forms for each in shapes_within(values, size_of, self.limits, form)]

    def left_out(
        self, candidates: Sequence[Candidate], kept_layers: Mapping[int, Sequence[int]] | None = None
    ) -> list[Candidate]:
        """Of every form, what is not among `candidates`, each with the reason."""
        values, size_of = self._counted(kept_layers)
        return [each for form in self.forms for each in shapes_left_out(values, size_of, self.limits, candidates, form)]

    def _counted(self, kept_layers: Mapping[int, Sequence[int]] | None) -> tuple[AxisValues, SizeOf]:
        """What each count may be where these layers stay, and how large shapes then are."""
        values = self.values
        if kept_layers:
            values = replace(values, layers=[number for number in values.layers if number in kept_layers])
        return values, lambda shape: self.size(shape, kept_layers)

    @property
    def largest(self) -> Candidate:
        """What stands for the choice until it is made: no other shape has more parameters."""
        return max(self.candidates(), key=lambda each: (each.size.parameters, each.shape))

    @property
    def original(self) -> FitShape:
        return self.values.original
