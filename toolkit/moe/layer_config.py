"""A configuration with fewer decoder layers: what a configuration says of single layers, and how it says it.

    with layers 0, 2 and 3 of 4:
    "num_hidden_layers": 4                                  -> 3
    "layer_types": ["sliding", "full", "sliding", "full"]   -> ["sliding", "sliding", "full"]   one entry per layer
    "mlp_only_layers": [0, 1]                               -> [0]                              numbers of layers
    "kv_source_layers": [0, 0, 2, 2]                        -> [0, 1, 1]                        both
    "per_layer_config": {"2": {"head_dim": 512}}            -> {"1": {"head_dim": 512}}         by number
    "linear_attn_config": {"kda_layers": [1, 2, 4], …}      -> {"kda_layers": [1, 3], …}        numbered from 1
    "first_k_dense_replace": 2                              -> 1                                a count from the beginning

Settings are recognized by what they hold and by words that all families use, never by the family. What a rule gets wrong, and
what cannot be said of fewer layers (every second layer is dense), shows in the model that the changed configuration describes:
layer_change.py compares it with the original.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COUNT = "num_hidden_layers"
FURTHER_TOKENS = re.compile("mtp|nextn")  # of layers that predict further tokens, which are numbered for themselves
NOT_PER_LAYER = re.compile("token|section|limit")  # lists that may be as long as there are layers by accident
NUMBERS = re.compile("layer|idx|index|ids")  # names of what holds numbers of layers
SOURCES = re.compile("source")
LEADING = re.compile("first_k|num_dense_layers|start_index|max_window_layers|num_hash_layers|dense_mlp_idx")
LAST = re.compile("end_index")
TRAILING = re.compile("shared_layers")
BORROWS = re.compile("shared|reuse")  # an entry that makes a layer use what the last one of another entry before it computed


class CannotDropLayers(Exception):
    """Why these layers cannot go."""


@dataclass(frozen=True)
class KeptLayers:
    """The layers that stay, of how many; `base`: what lists of layers' numbers count from, where they do not show it."""

    layers: int
    kept: tuple[int, ...]
    base: int = 0

    def renumbered(self, numbers: Iterable[int], base: int) -> list[int]:
        """New numbers of those that stay; both count from `base`."""
        return [self.kept.index(number - base) + base for number in numbers if number - base in self.kept]


Setting = Callable[[Any, KeptLayers], Any]  # a setting's value and the layers that stay -> its new value


def one_per_layer(value: Sequence[Any], stay: KeptLayers) -> list[Any]:
    """One entry per layer."""
    if all(isinstance(entry, str) for entry in value):
        for number in stay.kept:
            lender = next((n for n in range(number, -1, -1) if not BORROWS.search(value[n])), number)
            if lender not in stay.kept:
                raise CannotDropLayers(f"layer {number} ({value[number]}) uses what layer {lender} computes, which would go")
    return [value[number] for number in stay.kept]


def sources(value: Sequence[int], stay: KeptLayers) -> list[int]:
    """For each layer the number of the one whose keys and values it uses."""
    for number in stay.kept:
        if value[number] not in stay.kept:
            raise CannotDropLayers(f"layer {number} uses what layer {value[number]} computes, which would go")
    return stay.renumbered([value[number] for number in stay.kept], 0)


def pattern(value: str, stay: KeptLayers) -> str:
    """One letter per layer."""
    return "".join(value[number] for number in stay.kept)


def numbers(value: Sequence[int], stay: KeptLayers) -> list[int]:
    """Numbers of layers."""
    shown = 1 if stay.layers in value else 0 if 0 in value else stay.base
    return stay.renumbered(value, shown)


def by_number(value: Mapping[Any, Any], stay: KeptLayers) -> dict[Any, Any]:
    """Something of some layers, by their numbers."""
    new = {number: position for position, number in enumerate(stay.kept)}
    return {type(key)(new[int(key)]): inner for key, inner in value.items() if int(key) in new}


def parts(value: Mapping[str, Any], stay: KeptLayers) -> dict[str, Any]:
    """Lists that share the layers out number them alike."""
    listed = [value[key] for key in value if _setting(key, value[key], stay.layers) is numbers]
    first = (
        1 if any(stay.layers in entries for entries in listed) else 0 if any(0 in entries for entries in listed) else stay.base
    )
    return {
        key: stay.renumbered(inner, first) if _setting(key, inner, stay.layers) is numbers else changed(key, inner, stay)
        for key, inner in value.items()
    }


def leading(value: int, stay: KeptLayers) -> int:
    """A number of layers at the beginning, or that of the first behind them."""
    return sum(number < value for number in stay.kept)


def last(value: int, stay: KeptLayers) -> int:
    """The number of the last layer of a kind."""
    return sum(number <= value for number in stay.kept) - 1


def trailing(value: int, stay: KeptLayers) -> int:
    """A number of layers at the end."""
    return sum(number >= stay.layers - value for number in stay.kept)


def count(value: int, stay: KeptLayers) -> int:
    """The number of all layers."""
    return len(stay.kept)


def _setting(key: str, value: Any, layers: int) -> Setting | None:
    """What a setting says of the layers; None where it says nothing of single ones."""
    if FURTHER_TOKENS.search(key):
        return None
    if key == COUNT:
        return count
    if isinstance(value, Mapping) and value:
        if all(str(inner).isdigit() and int(inner) < layers for inner in value):
            return by_number if NUMBERS.search(key) else None
        return (
            parts if any(isinstance(k, str) and NUMBERS.search(k) and _setting(k, v, layers) for k, v in value.items()) else None
        )
    if isinstance(value, str):
        return pattern if len(value) == layers and "pattern" in key else None
    if isinstance(value, list | tuple):
        return None if NOT_PER_LAYER.search(key) else _list_setting(key, value, layers)
    if type(value) is int and 0 <= value < layers:
        rules: list[tuple[re.Pattern[str], Setting]] = [(LEADING, leading), (LAST, last), (TRAILING, trailing)]
        return next((rule for words, rule in rules if words.search(key)), None)
    return None


def _list_setting(key: str, value: Sequence[Any], layers: int) -> Setting | None:
    whole = bool(value) and all(type(entry) is int and 0 <= entry <= layers for entry in value)
    if len(value) == layers:
        if whole and SOURCES.search(key):
            return sources
        flags = not whole or set(value) <= {0, 1}
        return one_per_layer if flags or list(value) != sorted(set(value)) else numbers
    return numbers if whole and NUMBERS.search(key) else None


def is_per_layer(key: str, value: Any, layers: int) -> bool:
    """Whether a setting says something of single layers of a model with so many."""
    return _setting(key, value, layers) is not None


def changed(key: str, value: Any, stay: KeptLayers) -> Any:
    """The setting where only these layers stay. Raises CannotDropLayers where one of them borrows from a layer that goes."""
    rule = _setting(key, value, stay.layers)
    return rule(value, stay) if rule else value


def configs_with_layers(config: Any, kept: Sequence[int]) -> Iterator[Any]:
    """New configurations of the model with the `kept` layers only, the likeliest first: lists of layers' numbers may count from
    0 or from 1. Raises CannotDropLayers as `changed` does, and for what the configuration's class refuses."""
    text = config.get_text_config()
    before: dict[str, Any] | None = None
    for base in (0, 1):
        stay = KeptLayers(text.num_hidden_layers, tuple(kept), base)
        whole = config.to_dict()
        part = _part_of(whole, config, text)
        spelling = text.attribute_map.get(COUNT, COUNT)
        new = {key: len(kept) if key == spelling else changed(key, value, stay) for key, value in part.items()}
        if new == before:
            return
        before = dict(new)
        part.clear()
        part.update(new)
        try:
            yield type(config).from_dict(whole)
        except Exception as error:  # strict configurations raise errors of their own
            raise CannotDropLayers(
                f"its configuration does not allow it: {str(error).strip().splitlines()[-1].strip()}"
            ) from error


def _part_of(settings: dict[str, Any], config: Any, text: Any) -> dict[str, Any]:
    """Of the settings of `config`, those of the part that describes the decoder layers."""
    if text is config:
        return settings
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None and inner.get_text_config() is text:
            return _part_of(settings[name], inner, text)
    raise CannotDropLayers("its configuration does not say where its decoder layers are described")
