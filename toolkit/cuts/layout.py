"""Which tensors the pruned checkpoint has, and which part of the original's each of them is.

No family and no kind of cut is named here. Which parameters change is what applying the plan to a model without weights shows;
which tensor becomes which parameter is what transformers' own loading says; what stays of a tensor is what the cuts say.
"""

from collections import defaultdict
from collections.abc import Mapping

from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from toolkit.cuts.apply import affected_parameters, renamed, taken
from toolkit.cuts.cut import AffectedTensor, UnknownLayoutError
from toolkit.cuts.plan import Plan
from toolkit.moe.completeness import Source, absent_parameters, check_sizes
from toolkit.moe.names import Destination, NameResolver
from toolkit.moe.tensor_files import Piece, StoredTensor
from toolkit.runtime.errors import PollardError


def pieces_of(
    stored: Mapping[str, StoredTensor], model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan
) -> tuple[list[Piece], list[str]]:
    """The tensors of the pruned checkpoint, and the names of those left out because transformers does not load them.

    `model` and `pruned`: the original and the model that `plan` was applied to, both without weights. Raises
    UnknownLayoutError, and PollardError where the files do not hold what the configuration describes.
    """
    names, affected = NameResolver(model), affected_parameters(model, pruned, plan)
    sources: dict[str, list[Source]] = defaultdict(list)  # per parameter
    destinations: dict[str, Destination] = {}  # of tensors that become (part of) a single parameter
    left_out: list[str] = []
    split: set[str] = set()  # parameters of tensors that become several
    for name in sorted(stored, key=dot_natural_key):
        resolved = names.resolve(name)
        if resolved is None:
            if names.is_mtp(name):
                left_out.append(name)
            elif reason := next(filter(None, (cut.refuses(name) for cut in plan.cuts)), None):
                raise UnknownLayoutError(reason)
            continue
        weight, destination = resolved
        if len(destination.parameters) == 1:
            destinations[name] = destination
            sources[destination.parameters[0]].append(Source(stored[name], weight))
        elif affected.keys() & set(destination.parameters):
            raise UnknownLayoutError(f"{name} becomes part of {' and '.join(destination.parameters)}")
        else:
            split.update(destination.parameters)
    names.check_layers(left_out)
    absent = absent_parameters(sources.keys() | split, model)
    if affected.keys() & set(absent):
        raise UnknownLayoutError(f"no tensor becomes {min(affected.keys() & set(absent))}")
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in names.parameters.items()}
    for cut in plan.cuts:
        cut.check_stored(sources, {parameter: shapes[parameter] for parameter in affected})
    check_sizes({parameter: tensors for parameter, tensors in sources.items() if parameter not in split}, model)
    if absent:
        more = f" (and {len(absent) - 1:,} more of the model's parameters)" * (len(absent) > 1)
        raise PollardError(
            f"No tensor of the files becomes {absent[0]}{more}. Is a file missing? Fetch the checkpoint again.",
            code="checkpoint.tensors-missing",
        )
    new_names = {name: name for name in sorted(stored.keys() - set(left_out), key=dot_natural_key)}
    shortened = []
    for name in list(new_names):
        if name not in destinations or (parameter := destinations[name].parameters[0]) not in affected:
            continue
        new = renamed(plan, name, parameter)
        if new is None:
            del new_names[name]
            continue
        new_names[name] = new
        sizes = stored[name].shape, parameter, shapes[parameter], affected[parameter]
        shortened.append(AffectedTensor(name, *sizes, destinations[name].converted, destinations[name].reordered))
    indices = taken(plan, model, shortened)
    pieces = [Piece(new, stored[name], indices.get(name, {})) for name, new in new_names.items()]
    return pieces, left_out
