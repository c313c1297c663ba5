"""Which parameter a checkpoint's tensor becomes, by transformers' own renaming and conversion: no family is named here."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


class Home(NamedTuple):
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
        self.modules = dict(model.named_modules())

    def home(self, name: str) -> Home:
        """As `convert_and_load_state_dict_in_model` decides it."""
        found, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.parameters)
        if found not in self.parameters and name in self.parameters:
            found, pattern = rename_source_key(name, [], [], self.prefix, self.parameters)
        if pattern is None:
            return Home((found,), False)
        targets = next(step.target_patterns for step in self.converters if pattern in step.source_patterns)
        return Home(tuple(found.replace(targets[0], target) for target in targets), True)

    def known(self, name: str) -> Home | None:
        """The home of a tensor, or of the weight that it is the scale (zero point, …) of; None where there is neither."""
        stem, _, last = name.rpartition(".")
        words = last.split("_")
        shorter = ["_".join(words[:count]) for count in range(len(words), 0, -1)]  # weight_scale_inv, weight_scale, weight
        for candidate in [*(f"{stem}.{word}" for word in shorter), f"{stem}.weight"]:
            home = self.home(candidate)
            if home.parameters[0] in self.parameters:
                return home
        return None

    def is_further(self, name: str) -> bool:
        """Whether an unknown tensor is of a layer that predicts further tokens: behind the last layer, or named so."""
        parts = self.home(name).parameters[0].split(".")
        for at, part in enumerate(parts):
            layers = self.modules.get(".".join(parts[:at]))
            if part.startswith("mtp") or (isinstance(layers, nn.ModuleList) and part.isdigit() and int(part) >= len(layers)):
                return True
        return False
