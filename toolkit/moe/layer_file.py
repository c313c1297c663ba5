"""A configuration file with fewer decoder layers: every spelling of what it says of single layers.

    "num_hidden_layers": 4, "moe_layer_freq": [0, 1, 1, 1], "hybrid_override_pattern": "M*-E"

A file may have keys that its class only reads others from (`moe_layer_freq`), and lack what the class derives (`layer_types`).
Keys that are there are brought up to date; where the class no longer knows them, they go; and what it would derive wrongly is
written out. Nothing else is added.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from toolkit.moe.layer_config import COUNT, is_per_layer
from toolkit.runtime.errors import PollardError

Settings = dict[str, Any]


def layer_settings(config: Any) -> Settings:
    """What a configuration, or a part of one, says of single layers; nothing where it has none."""
    layers = _count(config)
    settings: Settings = config.to_dict() if layers else {}
    return {key: value for key, value in settings.items() if layers and is_per_layer(key, value, layers)}


def update_layer_settings(written: Settings, config: Any) -> None:
    """Changes `written`, a file's content, so that it is read as `config` in what it says of single layers. Nothing changes where
    it has as many layers already. Raises PollardError where no file would be read so."""
    if not _count(config):
        return
    before = _read(written, config)
    layers = _count(before)
    if layers == _count(config):
        return
    current: Settings = config.to_dict()
    for key in [key for key, value in written.items() if is_per_layer(key, value, layers) or key == COUNT]:
        value = current.get(key, getattr(config, key, None))  # an attribute: another spelling, or what the class derives
        if key in current or isinstance(value, int | str | list):
            written[key] = copy.deepcopy(value)
        else:
            del written[key]
    keys = [key for key, value in before.to_dict().items() if is_per_layer(key, value, layers)]
    keys += [key for key in layer_settings(config) if key not in keys]
    for key in sorted(keys, key=lambda key: isinstance(current.get(key), list | dict)):  # numbers, which say more, first
        if key in _wrong(written, config, keys):  # one after the other: the class may derive the next from this one
            written[key] = copy.deepcopy(current[key])
    for key in _wrong(written, config, keys):
        raise PollardError(
            f"{config.model_type}: a configuration file cannot say {key}: {current[key]}. Keep other layers, or all.",
            code="layers.cannot-drop",
        )


def _wrong(written: Mapping[str, Any], config: Any, keys: list[str]) -> list[str]:
    """Those of `keys` that readers of `written` would have another value for."""
    read, meant = _read(written, config).to_dict(), config.to_dict()
    return [key for key in keys if key in meant and read.get(key) != meant[key]]


def _read(written: Mapping[str, Any], config: Any) -> Any:
    # Files say infinity in a way of transformers' own
    return type(config).from_dict(PreTrainedConfig._decode_special_floats(copy.deepcopy(dict(written))))


def _count(config: Any) -> int:
    count = getattr(config, COUNT, None)
    return count if isinstance(count, int) else 0
