"""Which tensor of a checkpoint belongs to which expert.

    model.layers.3.block_sparse_moe.experts.7.w1.weight            one expert's: stays under a new number, or goes
    model.layers.3.block_sparse_moe.experts.7.w1.weight_scale_inv  so does what belongs to it
    model.layers.3.mlp.experts.gate_up_proj_blocks [E, …]          all experts': rows stay
    model.layers.3.block_sparse_moe.gate.weight [E, H]             the router's: rows stay

No family is named here. Which parameters hold experts is what `slice_model` changes in a model without weights; which
tensor becomes which parameter is what transformers' own loading says.
"""

from collections import defaultdict
from collections.abc import Mapping

from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from toolkit.cuts.plan import Plan
from toolkit.moe.blocks import find_blocks
from toolkit.moe.completeness import EXPERT_NUMBER, Source, absent_parameters, check_experts, check_sizes
from toolkit.moe.masking import kept_rows
from toolkit.moe.names import NameResolver
from toolkit.moe.tensor_files import Piece, StoredTensor, row_axis
from toolkit.runtime.errors import PollardError


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
    where the files do not hold what the configuration describes.
    """
    names, cuts = NameResolver(model), expert_rows(model, sliced, plan)
    sources: dict[str, list[Source]] = defaultdict(list)  # per parameter
    parameters: dict[str, str] = {}  # per tensor, where it becomes (part of) a single parameter
    left: list[str] = []
    split: set[str] = set()  # parameters of tensors that become several
    for name in sorted(stored, key=dot_natural_key):
        known = names.resolve(name)
        if known is None:
            if names.is_mtp(name):
                left.append(name)
            elif EXPERT_NUMBER.search(name):
                raise UnknownLayoutError(f"{name} is of one expert, and no parameter of the model comes from it")
            continue
        weight, home = known
        if len(home.parameters) == 1:
            parameters[name] = home.parameters[0]
            sources[home.parameters[0]].append(Source(stored[name], weight))
        elif cuts.keys() & set(home.parameters):
            raise UnknownLayoutError(f"{name} becomes part of {' and '.join(home.parameters)}")
        else:
            split.update(home.parameters)
    names.check_layers(left)
    absent = absent_parameters(sources.keys() | split, model)
    if cuts.keys() & set(absent):
        raise UnknownLayoutError(f"no tensor becomes {min(cuts.keys() & set(absent))}")
    check_experts(sources, {parameter: names.parameters[parameter].shape[0] for parameter in cuts})
    check_sizes({parameter: mine for parameter, mine in sources.items() if parameter not in split}, model)
    if absent:
        more = f" (and {len(absent) - 1:,} more of the model's parameters)" * (len(absent) > 1)
        raise PollardError(f"No tensor of the files becomes {absent[0]}{more}. Is a file missing? Fetch the checkpoint again.")
    pieces = []
    for name in sorted(stored.keys() - set(left), key=dot_natural_key):
        parameter, number = parameters.get(name, ""), EXPERT_NUMBER.search(name)
        if parameter not in cuts:
            pieces.append(Piece(name, stored[name]))
        elif number is None:
            pieces.append(_rows_of(name, stored[name], names.parameters[parameter].shape, cuts[parameter]))
        elif int(number[0]) in cuts[parameter]:
            new = str(cuts[parameter].index(int(number[0])))
            pieces.append(Piece(EXPERT_NUMBER.sub(new, name, count=1), stored[name]))
    return pieces, left


def _rows_of(name: str, tensor: StoredTensor, shape: tuple[int, ...], rows: list[int]) -> Piece:
    """A tensor with one row per expert; a single number is a scale of all experts together."""
    if tensor.shape in ((), (1,)):
        return Piece(name, tensor)
    axis = row_axis(tensor.shape)
    if tensor.shape[axis] != shape[row_axis(shape)]:
        raise UnknownLayoutError(f"{name} {list(tensor.shape)} has no row per expert of {list(shape)}")
    return Piece(name, tensor, rows)
