"""Which tensor of a checkpoint belongs to which expert.

    model.layers.3.block_sparse_moe.experts.7.w1.weight            one expert's: stays under a new number, or goes
    model.layers.3.block_sparse_moe.experts.7.w1.weight_scale_inv  so does what belongs to it
    model.layers.3.mlp.experts.gate_up_proj_blocks [E, …]          all experts': rows stay
    model.layers.3.block_sparse_moe.gate.weight [E, H]             the router's: rows stay

No family is named here. Which parameters hold experts is what `slice_model` changes in a model without weights; which
tensor becomes which parameter is what transformers' own loading says.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from toolkit.errors import PollardError
from toolkit.moe.blocks import find_blocks
from toolkit.moe.slice import kept_rows
from toolkit.moe.tensor_files import Piece, StoredTensor, row_axis
from toolkit.plan import Plan

EXPERT_NUMBER = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")  # what all families call the list of a block's experts


class UnknownLayoutError(Exception):
    """The checkpoint stores experts in a way that can only be understood by loading it."""


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


def expert_rows(model: PreTrainedModel, sliced: PreTrainedModel, plan: Plan) -> dict[str, list[int]]:
    """Per parameter that `slice_model` cuts, the rows that stay (along its first axis longer than 1)."""
    after, blocks, rows = sliced.state_dict(), find_blocks(model), {}
    for name, tensor in model.state_dict().items():
        if tensor.shape != after[name].shape:
            block = next(block for block in blocks if name.startswith(block.name + "."))
            rows[name] = kept_rows(tensor.shape[row_axis(tensor.shape)], plan.blocks[block.name].kept, block.expert_count)
    return rows


def cut(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, sliced: PreTrainedModel, plan: Plan
) -> tuple[list[Piece], list[str]]:
    """The tensors of the pruned checkpoint, and the names of those left out because transformers does not load them.

    `model` and `sliced`: the original and the pruned model, both without weights. Raises UnknownLayoutError, and PollardError
    where tensors of experts are missing.
    """
    names, cuts = Names(model), expert_rows(model, sliced, plan)
    pieces, left = [], []
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)  # (parameter, name with * for the number): numbers found
    served: set[str] = set()
    for name in sorted(stored, key=dot_natural_key):
        home = names.known(name)
        if home is None:
            if names.is_further(name):
                left.append(name)
            else:
                pieces.append(Piece(name, stored[name]))
            continue
        served.update(home.parameters)
        if not cuts.keys() & set(home.parameters):
            pieces.append(Piece(name, stored[name]))
            continue
        if len(home.parameters) > 1:
            raise UnknownLayoutError(f"{name} becomes part of {' and '.join(home.parameters)}")
        parameter = home.parameters[0]
        number = EXPERT_NUMBER.search(name)
        if number:
            numbers[parameter, EXPERT_NUMBER.sub("*", name, count=1)].add(int(number[0]))
            if int(number[0]) in cuts[parameter]:
                new = str(cuts[parameter].index(int(number[0])))
                pieces.append(Piece(EXPERT_NUMBER.sub(new, name, count=1), stored[name]))
        else:
            pieces.append(_rows_of(name, stored[name], names.parameters[parameter].shape, cuts[parameter]))
    _check_whole(numbers, names)
    absent = cuts.keys() - served
    if absent:
        raise UnknownLayoutError(f"no tensor becomes {min(absent)}")
    return pieces, left


def _rows_of(name: str, tensor: StoredTensor, shape: tuple[int, ...], rows: list[int]) -> Piece:
    """A tensor with one row per expert; a single number is a scale of all experts together."""
    if tensor.shape in ((), (1,)):
        return Piece(name, tensor)
    axis = row_axis(tensor.shape)
    if tensor.shape[axis] != shape[row_axis(shape)]:
        raise UnknownLayoutError(f"{name} {list(tensor.shape)} has no row per expert of {list(shape)}")
    return Piece(name, tensor, rows)


def _check_whole(numbers: Mapping[tuple[str, str], set[int]], names: Names) -> None:
    for (parameter, name), found in numbers.items():
        experts = names.parameters[parameter].shape[0]
        missing = sorted(set(range(experts)) - found)
        if missing or len(found) > experts:
            raise PollardError(
                f"The checkpoint has {name} for {len(found)} experts, and its configuration says {experts}"
                + (f": {name.replace('*', str(missing[0]))} is missing." if missing else ".")
            )
