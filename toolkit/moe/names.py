"""Which parameter a checkpoint's tensor becomes, by transformers' own renaming and conversion: no family is named here."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from toolkit.runtime.errors import PollardError

# What configurations call the layers that predict further tokens (num_nextn_predict_layers, num_mtp_layers, …)
FURTHER_LAYERS = re.compile(r"(?=.*(mtp|nextn))(.*num_|n_)")


class Destination(NamedTuple):
    """Where a tensor goes when transformers loads it."""

    parameters: tuple[str, ...]  # several where a converter splits it; names the model does not have where it is unknown
    converted: bool  # merged, split or transposed on the way


class Names:
    """Finds the parameters of `model` that the tensors of a checkpoint become."""

    def __init__(self, model: PreTrainedModel) -> None:
        conversions = get_model_conversion_mapping(model)
        self.renamings = [step for step in conversions if isinstance(step, WeightRenaming)]
        self.converters = [step for step in conversions if isinstance(step, WeightConverter)]
        self.prefix, self.parameters = model.base_model_prefix, model.state_dict()
        self.modules, self.config = dict(model.named_modules()), model.config

    def home(self, name: str) -> Destination:
        """As `convert_and_load_state_dict_in_model` decides it."""
        found, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.parameters)
        if found not in self.parameters and name in self.parameters:
            found, pattern = rename_source_key(name, [], [], self.prefix, self.parameters)
        if pattern is None:
            return Destination((found,), False)
        targets = next(step.target_patterns for step in self.converters if pattern in step.source_patterns)
        return Destination(tuple(found.replace(targets[0], target) for target in targets), True)

    def known(self, name: str) -> tuple[str, Destination] | None:
        """The home of a tensor, or of the weight that it is the scale (zero point, …) of, and that weight's name; None where
        there is neither."""
        stem, _, last = name.rpartition(".")
        words = last.split("_")
        shorter = ["_".join(words[:count]) for count in range(len(words), 0, -1)]  # weight_scale_inv, weight_scale, weight
        above, below, _ = name.partition(".weight.")  # w1.weight.absmax
        for candidate in [*(f"{stem}.{word}" for word in shorter), f"{stem}.weight", *[f"{above}.weight"] * bool(below)]:
            home = self.home(candidate)
            if home.parameters[0] in self.parameters:
                return candidate, home
        return None

    def is_further(self, name: str) -> bool:
        """Whether an unknown tensor is of a layer that predicts further tokens: named so, or behind the last layer."""
        parts = self.home(name).parameters[0].split(".")
        return any(part.startswith("mtp") for part in parts) or self._behind(parts) is not None

    def _behind(self, parts: list[str]) -> tuple[str, int] | None:
        """The list of layers that the parameter of these parts would be behind the end of, and its number there."""
        for at, part in enumerate(parts):
            path = ".".join(parts[:at])
            layers = self.modules.get(path)
            if isinstance(layers, nn.ModuleList) and part.isdigit() and int(part) >= len(layers):
                return path, int(part)
        return None

    def check_layers(self, names: Iterable[str]) -> None:
        """Raises PollardError where the files have more layers than the configuration says; a layer behind the last one is
        taken for one that predicts further tokens only where the configuration promises as many of them."""
        behind: dict[str, set[int]] = defaultdict(set)
        for name in names:
            parts = self.home(name).parameters[0].split(".")
            place = None if any(part.startswith("mtp") for part in parts) else self._behind(parts)
            if place:
                behind[place[0]].add(place[1])
        promised = _further_layers(self.config)
        for path, numbers in behind.items():
            if len(numbers) > promised:
                layers = self.modules[path]
                assert isinstance(layers, nn.ModuleList)
                most = f"{len(layers)} layer{'s' * (len(layers) > 1)}" + f" and {promised} that predict further tokens" * bool(
                    promised
                )
                raise PollardError(
                    f"The configuration says {most}, and the files have {max(numbers) + 1}: {path}.{min(numbers)} is no layer of "
                    "the model. Is config.json another model's? Put the number of layers right there (num_hidden_layers), or "
                    "fetch config.json again."
                )


def _further_layers(config: Any) -> int:
    """How many layers that predict further tokens the configuration promises."""
    parts = [config.to_dict(), config.get_text_config().to_dict()]
    numbers = [value for part in parts for key, value in part.items() if FURTHER_LAYERS.match(key)]
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)
