"""Do the files hold what the configuration describes? Checked by names, dtypes and shapes, before anything is written.

An expert is complete where each of its parameters has some representation: the plain weight, or all the tensors of a quantized
one. Within a block these may differ: makers leave single experts unquantized.

    …experts.3.w1.weight                                plain
    …experts.4.w1.{qweight, qzeros, scales, g_idx}      quantized
    …experts.5.w1.{qweight, qzeros, scales}             damaged: what the others of its kind have is missing
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from toolkit.moe.tensor_files import StoredTensor
from toolkit.runtime.errors import PollardError

EXPERT_NUMBER = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")  # what all families call the list of a block's experts
PLAIN = ("F64", "F32", "F16", "BF16")  # dtypes of weights that are no codes of a quantization


class Source(NamedTuple):
    """A tensor of the files that becomes (part of) a parameter."""

    tensor: StoredTensor
    weight: str  # the name of the weight that it is, or that it belongs to as a scale, a zero point, …

    @property
    def is_plain(self) -> bool:
        return self.tensor.name == self.weight and self.tensor.dtype in PLAIN


def check_experts(sources: Mapping[str, Sequence[Source]], experts: Mapping[str, int]) -> None:
    """Raises PollardError where a parameter's experts (`experts`: how many it has) are not all complete, or are more."""
    for parameter, count in experts.items():
        weights: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        plain: set[tuple[str, int]] = set()
        for source in sources[parameter]:
            number = EXPERT_NUMBER.search(source.tensor.name)
            if number is None:
                continue
            weight = EXPERT_NUMBER.sub("*", source.weight, count=1)
            weights[weight][int(number[0])].add(EXPERT_NUMBER.sub("*", source.tensor.name, count=1))
            if source.is_plain:
                plain.add((weight, int(number[0])))
        for weight, found in weights.items():
            _check_weight(weight, found, {number for name, number in plain if name == weight}, count)


def _check_weight(weight: str, found: Mapping[int, set[str]], plain: set[int], count: int) -> None:
    """`found`: the names of each expert's tensors of one weight, with * for its number."""
    quantized = {number: names for number, names in found.items() if number not in plain}
    incomplete = {
        number: max((other for other in quantized.values() if names < other), key=len) - names
        for number, names in quantized.items()
        if any(names < other for other in quantized.values())
    }
    missing = sorted(set(range(count)) - found.keys())
    if missing:
        whole = weight if plain else min(min(found.values()))
        raise _wrong(weight, len(found), count, f": {whole.replace('*', str(missing[0]))} is missing.")
    if len(found) > count:
        raise _wrong(weight, len(found), count, ".")
    if incomplete:
        number, lacking = min(incomplete.items())
        raise PollardError(
            f"The checkpoint has expert {number}'s {weight} neither plain nor whole: {min(lacking).replace('*', str(number))} is "
            f"missing, which other experts have ({len(incomplete)} of {count} experts lack a tensor). Fetch the files again.",
            code="checkpoint.incomplete-expert",
        )


def _wrong(weight: str, found: int, count: int, rest: str) -> PollardError:
    return PollardError(
        f"The checkpoint has {weight} for {found} experts, and its configuration says {count}{rest}",
        code="checkpoint.other-expert-count",
    )


def check_sizes(sources: Mapping[str, Sequence[Source]], model: PreTrainedModel) -> None:
    """Raises PollardError where plain tensors hold more or fewer numbers than the parameter they become: however they are
    merged, transposed or split up, none is lost."""
    for name, parameter in model.state_dict().items():
        stored = sources.get(name, [])
        found = sum(math.prod(source.tensor.shape) for source in stored)
        if not stored or not all(source.is_plain for source in stored) or found == parameter.numel():
            continue
        tensor, shape = stored[0].tensor, list(parameter.shape)
        if len(stored) == 1 and len(tensor.shape) == len(shape):
            raise PollardError(mismatch(tensor.name, tensor.shape, shape, model.config), code="checkpoint.shape-mismatch")
        raise PollardError(
            f"The {len(stored)} tensors that become {name} (such as {tensor.name} {list(tensor.shape)}) hold {found:,} numbers, "
            f"and the configuration describes {parameter.numel():,} {shape}. Is config.json another model's? Fetch it again.",
            code="checkpoint.shape-mismatch",
        )


def mismatch(name: str, stored: Sequence[int], described: Sequence[int], config: Any) -> str:
    """The message for a tensor whose shape in the files is not the one that the configuration describes; it names the key that
    decides the shape."""
    settings = config.get_text_config().to_dict()
    wrong = [size for size, other in zip(described, stored, strict=False) if size != other]
    keys = [f"{key}: {value}" for key, value in settings.items() if type(value) is int and value in wrong]
    return (
        f"{name} is {list(stored)} in the files, and the configuration describes {list(described)}"
        + (f" ({', '.join(keys)})" if keys else "")
        + ". Is config.json another model's? Put it right, or fetch it again."
    )


def absent_parameters(served: Iterable[str], model: PreTrainedModel) -> list[str]:
    """The parameters that no tensor becomes, but for those that are tied to others or that transformers does without."""
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    absent = model.state_dict().keys() - set(served) - set(getattr(model, "all_tied_weights_keys", {}))
    return sorted(name for name in absent if not any(pattern.search(name) for pattern in ignored))
