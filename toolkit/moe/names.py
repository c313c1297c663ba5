"""Which parameter a checkpoint's tensor becomes, by transformers' own renaming and conversion: no family is named here.

model.layers.3.block_sparse_moe.experts.7.w1.weight             becomes (part of) model.layers.3.mlp.experts.gate_up_proj
model.layers.3.block_sparse_moe.experts.7.w1.weight_scale_inv   belongs to the tensor above
model.layers.32.eh_proj.weight                                  of a layer that predicts further tokens (MTP): not loaded
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from toolkit.runtime.errors import PollardError

# What configurations call the number of layers that predict further tokens (num_nextn_predict_layers, num_mtp_layers, …)
MTP_COUNT_KEYS = re.compile(r"(?=.*(mtp|nextn))(.*num_|n_)")

IN_ORDER = (MergeModulelist, Concatenate, Transpose)  # conversions that leave rows and columns in their order


class Destination(NamedTuple):
    """What a tensor of a checkpoint becomes when transformers loads it."""

    parameters: tuple[str, ...]  # several where a converter splits it; names the model does not have where it is unknown
    converted: bool  # merged, split or transposed on the way
    reordered: bool = False  # or put into another order within


class NameResolver:
    """Finds the parameters of `model` that the tensors of a checkpoint become."""

    def __init__(self, model: PreTrainedModel) -> None:
        conversions = get_model_conversion_mapping(model)
        self.renamings = [step for step in conversions if isinstance(step, WeightRenaming)]
        self.converters = [step for step in conversions if isinstance(step, WeightConverter)]
        self.prefix, self.parameters = model.base_model_prefix, model.state_dict()
        self.modules, self.config = dict(model.named_modules()), model.config

    def destination(self, name: str) -> Destination:
        """Decided as `convert_and_load_state_dict_in_model` does."""
        found, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.parameters)
        if found not in self.parameters and name in self.parameters:
            found, pattern = rename_source_key(name, [], [], self.prefix, self.parameters)
        if pattern is None:
            return Destination((found,), False)
        converter = next(step for step in self.converters if pattern in step.source_patterns)
        targets, reordered = converter.target_patterns, any(type(step) not in IN_ORDER for step in converter.operations)
        return Destination(tuple(found.replace(targets[0], target) for target in targets), True, reordered)

    def resolve(self, name: str) -> tuple[str, Destination] | None:
        """The name of the weight that the tensor `name` is, or belongs to as its scale (zero point, …), and that weight's
        destination; None where no parameter of the model comes from either."""
        stem, _, last = name.rpartition(".")
        words = last.split("_")
        shorter = ["_".join(words[:count]) for count in range(len(words), 0, -1)]  # weight_scale_inv, weight_scale, weight
        above, below, _ = name.partition(".weight.")  # w1.weight.absmax
        for candidate in [*(f"{stem}.{word}" for word in shorter), f"{stem}.weight", *[f"{above}.weight"] * bool(below)]:
            destination = self.destination(candidate)
            if destination.parameters[0] in self.parameters:
                return candidate, destination
        return None

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor that becomes no parameter is of a layer that predicts further tokens: named so, or numbered past the
        last layer."""
        parts = self.destination(name).parameters[0].split(".")
        return any(part.startswith("mtp") for part in parts) or self._past_the_end(parts) is not None

    def _past_the_end(self, parts: list[str]) -> tuple[str, int] | None:
        """The path of the list of layers past whose end the parameter of this dotted name would be, and its number there."""
        for at, part in enumerate(parts):
            path = ".".join(parts[:at])
            layers = self.modules.get(path)
            if isinstance(layers, nn.ModuleList) and part.isdigit() and int(part) >= len(layers):
                return path, int(part)
        return None

    def check_layers(self, names: Iterable[str]) -> None:
        """Raises PollardError where the files have more layers than the configuration says; a layer past the last one is
        taken for one that predicts further tokens only where the configuration announces as many of them."""
        extra: dict[str, set[int]] = defaultdict(set)
        for name in names:
            parts = self.destination(name).parameters[0].split(".")
            place = None if any(part.startswith("mtp") for part in parts) else self._past_the_end(parts)
            if place:
                extra[place[0]].add(place[1])
        announced = _mtp_layers(self.config)
        for path, numbers in extra.items():
            if len(numbers) > announced:
                layers = self.modules[path]
                assert isinstance(layers, nn.ModuleList)
                most = f"{len(layers)} layer{'s' * (len(layers) > 1)}" + f" and {announced} that predict further tokens" * bool(
                    announced
                )
                raise PollardError(
                    f"The configuration says {most}, and the files have {max(numbers) + 1}: {path}.{min(numbers)} is no layer of "
                    "the model. Is config.json another model's? Put the number of layers right there (num_hidden_layers), or "
                    "fetch config.json again.",
                    code="checkpoint.too-many-layers",
                )


def _mtp_layers(config: Any) -> int:
    """How many layers that predict further tokens the configuration announces."""
    parts = [config.to_dict(), config.get_text_config().to_dict()]
    numbers = [value for part in parts for key, value in part.items() if MTP_COUNT_KEYS.match(key)]
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)
