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

from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from toolkit.errors import PollardError
from toolkit.moe.blocks import find_blocks
from toolkit.moe.names import Names
from toolkit.moe.slice import kept_rows
from toolkit.moe.tensor_files import Piece, StoredTensor, row_axis
from toolkit.plan import Plan

EXPERT_NUMBER = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")  # what all families call the list of a block's experts


class UnknownLayoutError(Exception):
    """The checkpoint stores experts in a way that can only be understood by loading it."""


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
