"""Fewer decoder layers: some stay, renumbered 0, 1, … in their order.

    model.layers.3.self_attn.q_proj.weight      of a layer: stays under its new number, or goes
    model.embed_tokens.weight, lm_head.weight   stay as they are

Which layers can go is decided by the model that the changed configuration describes (toolkit/moe/layer_change.py): its layer i
must be the original's layer kept[i], or stock transformers would make another model of the same weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError, model_validator
from torch import nn
from transformers import PreTrainedModel

from toolkit.cuts.cut import AffectedTensor, ConfigFile, Cut, Indices, PlanView, Shape, UnknownLayoutError
from toolkit.moe.blocks import find_blocks
from toolkit.moe.completeness import Source
from toolkit.moe.layer_change import LayerChange, layer_change
from toolkit.moe.layer_config import COUNT
from toolkit.moe.layer_file import layer_settings, update_layer_settings
from toolkit.moe.layer_list import drop_layers, only_layers
from toolkit.moe.layers import layers_of
from toolkit.runtime.errors import PollardError


class LayersCut(Cut):
    """Which decoder layers stay, and how that was decided.

    `layers`: how many the original has. `kept`: ascending numbers of those that stay. `scores`: one per layer of the original;
    None where the criterion has none. `path`: of the list of layers, by its name in `named_modules()`.
    """

    kind: Literal["layers"] = "layers"
    layers: int
    kept: list[int]
    scores: list[float] | None = None
    path: str = "model.layers"

    @classmethod
    def of(cls, model: nn.Module, kept: Sequence[int], criterion: str, scores: Sequence[float] | None = None) -> "LayersCut":
        """Of `model`'s layers (which may be without weights) the `kept` ones. Raises PollardError for a list that is none of its
        layers."""
        path, layers = layers_of(model, find_blocks(model))
        listed = None if scores is None else list(scores)
        try:
            return cls(criterion=criterion, layers=len(layers), kept=list(kept), scores=listed, path=path)
        except ValidationError as error:
            raise PollardError(error.errors()[0]["msg"].removeprefix("Value error, ") + ".", code="plan.layers") from None

    @model_validator(mode="after")
    def _consistent(self) -> "LayersCut":
        if not self.kept or sorted(set(self.kept)) != self.kept:
            raise ValueError(f"kept must name layers, ascending and without duplicates, not {self.kept}")
        if self.kept[0] < 0 or self.kept[-1] >= self.layers:
            raise ValueError(f"kept names layers outside 0…{self.layers - 1}: {self.kept}")
        if self.scores is not None and len(self.scores) != self.layers:
            raise ValueError(f"{len(self.scores)} scores for {self.layers} layers")
        return self

    def check(self, model: PreTrainedModel, plan: PlanView) -> None:
        blocks = find_blocks(model)
        path, layers = layers_of(model, blocks)
        if (path, len(layers)) != (self.path, self.layers):
            raise PollardError(
                f"The plan is for another model: it says {self.layers} layers in {self.path}, and the model has {len(layers)} in "
                f"{path}.",
                code="plan.other-model",
            )
        if len(self.kept) == self.layers:
            return
        described = getattr(model.config.get_text_config(), COUNT, None)
        if described != self.layers:
            raise PollardError(
                f"The model's configuration says {described} layers, and the model has {self.layers}: is it shared with a model "
                "that was cut? Give each a copy.",
                code="layers.cannot-drop",
            )
        if not any(self.rename(block.name, block.name) for block in blocks):
            raise PollardError(
                f"The plan keeps layers {self.kept}, and none of them has experts: the MoE blocks are {_first(blocks)}. Keep at "
                "least one of their layers.",
                code="layers.no-moe-block",
            )
        layer_change(model, self.path, self.kept)

    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        if len(self.kept) < self.layers:
            layer_change(model, self.path, self.kept).apply(model)
            drop_layers(model, self.path, self.kept)

    def masks(self, model: PreTrainedModel, plan: PlanView) -> "list[LayersMask]":
        if len(self.kept) == self.layers:
            return []
        return [LayersMask("", model, self.path, self.kept, layer_change(model, self.path, self.kept))]

    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        return {}

    def rename(self, name: str, parameter: str) -> str | None:
        number = self.number_of(parameter)
        if number is None:
            return name
        parts = name.split(".")
        at = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        if at is None or int(parts[at]) != number:
            raise UnknownLayoutError(f"{name}, which is of layer {number}, does not say so")
        if number not in self.kept:
            return None
        return ".".join([*parts[:at], str(self.kept.index(number)), *parts[at + 1 :]])

    def number_of(self, parameter: str) -> int | None:
        """The number of the layer that a parameter or module of the model is (part) of."""
        found = parameter.removeprefix(f"{self.path}.").partition(".")[0]
        return int(found) if parameter.startswith(f"{self.path}.") and found.isdigit() else None

    def refuses(self, name: str) -> str | None:
        parts, of_list = name.split("."), self.path.rpartition(".")[2]
        of_layer = any(part == of_list and after.isdigit() for part, after in pairwise(parts))
        return f"{name} is of one layer, and no parameter of the model comes from it" if of_layer else None

    def check_stored(self, sources: Mapping[str, Sequence[Source]], affected: Mapping[str, Shape]) -> None:
        """Whole tensors stay or go: there is nothing to take apart."""

    @classmethod
    def config(cls, config: Any) -> ConfigFile:
        return layer_settings(config)

    @classmethod
    def update_config(cls, written: ConfigFile, config: Any) -> None:
        # A list that readers derive from other keys, such as layer_types from a period, is written where they would be wrong
        update_layer_settings(written, config)

    def choice(self) -> list[int]:
        return self.kept

    def summary(self) -> dict[str, object]:
        return self.model_dump(include={"kind", "criterion", "layers", "kept"})

    def in_words(self) -> str:
        return f"{len(self.kept)} of {self.layers} layers by {self.criterion}"


class LayersMask(NamedTuple):
    """A model without some of its layers: nobody need know what a layer hands on that is not there."""

    name: str  # empty
    model: PreTrainedModel
    path: str
    kept: list[int]
    change: LayerChange

    @contextmanager
    def applied(self) -> Iterator[None]:
        with self.change.applied(self.model), only_layers(self.model, self.path, self.kept):
            yield


def _first(blocks: Sequence[Any]) -> str:
    names = [block.name for block in blocks]
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
