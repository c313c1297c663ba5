"""What else changes where decoder layers are dropped, and whether they can be: read off from two models without weights.

The configuration is changed (layer_config.py), and the model that it describes is built beside the original. Its layer i must
be the original's layer kept[i] in classes, shapes and plain attributes, or stock transformers would read another model from
the files. Three things may differ, and are what `LayerChange` holds:

    model.layers.2.self_attn.layer_idx    a layer's own number, in whatever attribute
    model.first_kv_shared_layer_idx       what the model outside its layers keeps of their number
    config.layer_types, …                 the changed settings
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import CacheLayerMixin, DummyLayer, DynamicCache

from toolkit.moe.layer_config import CannotDropLayers, configs_with_layers
from toolkit.moe.load import meta_model
from toolkit.runtime.errors import PollardError

GONE = object()  # in place of a value: the attribute does not exist


@dataclass(frozen=True)
class LayerChange:
    """Of a model whose other layers go: values of attributes by module and name (modules under the original's names), and of
    its text configuration."""

    attributes: Mapping[tuple[str, str], Any]
    settings: Mapping[str, Any]
    config_class: type

    def apply(self, model: nn.Module) -> None:
        """Sets everything in `model`, whose modules have the original's names."""
        for holder, name, value in self._places(model):
            _set(holder, name, value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The same inside the context; everything is as before after it."""
        before = [(holder, name, vars(holder).get(name, GONE)) for holder, name, _ in self._places(model)]
        try:
            self.apply(model)
            yield
        finally:
            for holder, name, value in before:
                _set(holder, name, value)

    def _places(self, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
        modules = dict(model.named_modules())
        for (path, name), value in self.attributes.items():
            yield modules[path], name, value
        configs = [getattr(module, "config", None) for module in modules.values()]
        configs.append(getattr(getattr(model, "config", None), "get_text_config", lambda: None)())
        for config in {id(config): config for config in configs if type(config) is self.config_class}.values():
            for name, value in self.settings.items():
                if name in vars(config) or (value is not GONE and not name.startswith("_")):
                    yield config, name, value


def _set(holder: Any, name: str, value: Any) -> None:
    """Past setters that check one setting against others which are not changed yet."""
    if value is GONE:
        vars(holder).pop(name, None)
    else:
        vars(holder)[name] = value


def layer_change(model: PreTrainedModel, path: str, kept: Sequence[int]) -> LayerChange:
    """What changes in `model`, which may be without weights, where the `kept` of the layers at `path` stay. Raises PollardError
    with the reason where stock transformers would not read these layers as they are. Remembers its answers: a search asks for the
    same layers many times."""
    return _layer_change(_Question(model.config, path, tuple(kept)))


class _Question:
    """Equal to others that have the same answer."""

    def __init__(self, config: Any, path: str, kept: tuple[int, ...]) -> None:
        self.config, self.path, self.kept = config, path, kept
        self.key = (type(config), config.to_json_string(use_diff=False), path, kept)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self.key == other.key


@lru_cache(maxsize=1024)
def _layer_change(question: _Question) -> LayerChange:
    original = _original(_Question(question.config, question.path, ()))
    reasons = []
    try:
        for new_config in configs_with_layers(original.config, question.kept):
            try:
                new = meta_model(new_config)
                attributes = _inside(original, new, question.path, question.kept) | _outside(original, new, question.path)
                _check_cache(original.config, new_config)
            except (CannotDropLayers, PollardError) as error:
                reasons.append(str(error))
            else:
                return LayerChange(attributes, _settings(original.config, new_config), type(new_config.get_text_config()))
    except CannotDropLayers as error:
        reasons.append(str(error))
    raise PollardError(
        f"{original.config.model_type} {_without(original, question)}: {reasons[0]}. Keep others, or all.",
        code="layers.cannot-drop",
    )


def _without(original: PreTrainedModel, question: _Question) -> str:
    kept = list(question.kept)
    gone = [number for number in range(original.config.get_text_config().num_hidden_layers) if number not in kept]
    return f"cannot do without the layers {gone}" if len(gone) < len(kept) else f"cannot do with the layers {kept} alone"


@lru_cache(maxsize=2)
def _original(question: _Question) -> PreTrainedModel:
    """The model without weights, from the configuration as it is written and read again: as the changed ones are."""
    return meta_model(type(question.config).from_dict(question.config.to_dict()))


def _settings(config: Any, new_config: Any) -> dict[str, Any]:
    before, after = vars(config.get_text_config()), vars(new_config.get_text_config())
    keys = [key for key in {**before, **after} if before.get(key, GONE) != after.get(key, GONE)]
    return {key: after.get(key, GONE) for key in keys}


class _Differences:
    """Between a module of the original and that of the model with fewer layers: per name (before, after)."""

    def __init__(self, module: nn.Module, new: nn.Module) -> None:
        self.classes = type(module).__name__, type(new).__name__
        self.tensors = _unequal(_tensors(module), _tensors(new))
        self.attributes = _unequal(_plain(module), _plain(new))


def _unequal(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (before.get(name, GONE), after.get(name, GONE)) for name in {**before, **after}}
    # Either says what is equal and looks different (sets), or looks equal and is different (nan)
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new and repr(old) != repr(new)}


def _tensors(module: nn.Module) -> dict[str, str]:
    """Kind and shape of the parameters and buffers that a module itself holds."""
    found = {}
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        kind = "computed" if _is_computed(module, name) else "stored"
        found[name] = f"{kind} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    return found


def _is_computed(module: nn.Module, buffer: str) -> bool:
    """Whether no file holds it."""
    return buffer in module._non_persistent_buffers_set


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _inside(original: nn.Module, new: nn.Module, path: str, kept: Sequence[int]) -> dict[tuple[str, str], Any]:
    """The attributes that hold a layer's own number, with the new ones. Raises CannotDropLayers where anything else of a layer
    would be another."""
    layers, new_layers = original.get_submodule(path), new.get_submodule(path)
    assert isinstance(layers, nn.ModuleList) and isinstance(new_layers, nn.ModuleList)
    if len(new_layers) != len(kept):
        raise CannotDropLayers(f"its configuration would still describe {len(new_layers)} layers, not {len(kept)}")
    own = _own_numbers(layers)
    found: dict[tuple[str, str], Any] = {}
    for position, number in enumerate(kept):
        what = f"layer {number}, as layer {position},"
        for name, module, new_module in _pairs(layers[number], new_layers[position], what):
            differences = _Differences(module, new_module)
            others = {
                key: pair for key, pair in differences.attributes.items() if (name, key) not in own or pair != (number, position)
            }
            _refuse(what, name, differences, others)
            found |= {(_dotted(f"{path}.{number}", name), key): position for key in differences.attributes}
            _check_computed(what, name, module, new_module, (original, new))
    return found


def _own_numbers(layers: nn.ModuleList) -> set[tuple[str, str]]:
    """Attributes (module's name in its layer, name) that are the number of their layer in every layer that has them."""
    values: dict[tuple[str, str], list[bool]] = {}
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            for key, value in _plain(module).items():
                values.setdefault((name, key), []).append(type(value) is int and value == number)
    return {place for place, agrees in values.items() if all(agrees)}


def _outside(original: nn.Module, new: nn.Module, path: str) -> dict[tuple[str, str], Any]:
    """Counts, switches and names that modules outside the layers hold, where they change. Raises CannotDropLayers where what the
    files hold for them would have another shape."""
    found: dict[tuple[str, str], Any] = {}
    for name, module, new_module in _pairs(original, new, "the model", path):
        differences = _Differences(module, new_module)
        # Of a kind of layers that is no more, such as its rotary frequencies: what is left of it does no harm
        for pairs in (differences.tensors, differences.attributes):
            for key in [key for key, (before, after) in pairs.items() if after is GONE and not str(before).startswith("stored")]:
                del pairs[key]
        others = {
            key: (before, after)
            for key, (before, after) in differences.attributes.items()
            if before is GONE or not isinstance(after, int | Mapping | list | tuple | set)
        }
        _refuse("the model", name, differences, others)
        found |= {(name, key): after for key, (_, after) in differences.attributes.items()}
    return found


def _pairs(one: nn.Module, other: nn.Module, what: str, left_out: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The modules of the same name in two models, but for those in `left_out`. Raises CannotDropLayers where one lacks some."""
    first, second = (
        {name: module for name, module in model.named_modules() if not (left_out and f"{name}.".startswith(f"{left_out}."))}
        for model in (one, other)
    )
    for name in sorted(first.keys() ^ second.keys()):
        raise CannotDropLayers(f"{what} would {'lose' if name in first else 'get'} {name}")
    yield from ((name, module, second[name]) for name, module in first.items())


def _refuse(what: str, name: str, differences: _Differences, attributes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises CannotDropLayers for other classes, tensors and `attributes`."""
    if len(set(differences.classes)) > 1:
        raise CannotDropLayers(f"{what} would have {differences.classes[1]} in place of {name or 'its'} {differences.classes[0]}")
    for key, (before, after) in {**differences.tensors, **attributes}.items():
        before, after = ("nothing" if value is GONE else value for value in (before, after))
        raise CannotDropLayers(f"{what} would have {_dotted(name, key)} = {after}, and has {before}")


def _dotted(*names: str) -> str:
    return ".".join(filter(None, names))


def _check_computed(what: str, name: str, module: nn.Module, new: nn.Module, models: tuple[nn.Module, nn.Module]) -> None:
    """Raises CannotDropLayers where a buffer that no file holds would have other values: they may follow from the layer's
    number."""
    for model, holder in zip(models, (module, new), strict=True):
        computed = {key: buffer for key, buffer in holder.named_buffers(recurse=False) if _is_computed(holder, key)}
        if any(buffer.is_meta for buffer in computed.values()):
            for key, buffer in computed.items():
                holder.register_buffer(key, torch.empty_like(buffer, device="cpu"), persistent=False)
            with init.guard_torch_init_functions(), torch.no_grad():
                _owner(model, holder)._init_weights(holder)
    for key in computed:
        if not torch.equal(module.get_buffer(key), new.get_buffer(key)):
            raise CannotDropLayers(f"{what} would have other values in {_dotted(name, key)}, which follow from its number")


def _owner(model: nn.Module, module: nn.Module) -> PreTrainedModel:
    """The innermost model that a module stands in."""
    owners = [
        part for part in model.modules() if isinstance(part, PreTrainedModel) and any(inner is module for inner in part.modules())
    ]
    return owners[-1]


def _check_cache(config: Any, new_config: Any) -> None:
    """Raises CannotDropLayers where no layer stays by which a cache knows how many tokens it holds."""
    if _knows_its_length(config) and not _knows_its_length(new_config):
        raise CannotDropLayers("no attention layer would stay, and without one text cannot be generated token by token")


def _knows_its_length(config: Any) -> bool:
    return any(
        isinstance(layer, CacheLayerMixin) and not isinstance(layer, DummyLayer) for layer in DynamicCache(config=config).layers
    )
