"""Whether stock transformers builds other numbers of experts in each layer from a configuration that says them.

    "per_layer_config": {"3": {"num_local_experts": 16}}     transformers 5 stores it for every family
    "num_local_experts": [8, 8, 8, 16]                       one entry per layer, as some families had it

Found by building the model without weights from such a configuration, never by the family's name.
"""

import copy
from collections.abc import Callable
from typing import Any

import transformers

from toolkit.moe.blocks import EXPERT_KEYS, MoEBlock, find_blocks
from toolkit.moe.layers import layers_of
from toolkit.moe.load import meta_model

OTHER_READERS = "vLLM and llama.cpp read such numbers of NemotronH-Puzzle only"


def why_not_per_layer(config: Any) -> str:
    """Why a checkpoint with other numbers of experts in each layer is not written, as a sentence without its full stop."""
    family = config.model_type
    if reads_counts_per_layer(config):
        return (
            f"Other numbers of experts in each layer are not written: transformers {transformers.__version__} reads them of "
            f"{family}, and Pollard does not write them yet"
        )
    return (
        "Other numbers of experts in each layer are not written, for no stock reader loads them: transformers "
        f"{transformers.__version__} builds {family} with one number for all layers or not at all, whatever per_layer_config in "
        f"config.json says, and {OTHER_READERS}"
    )


def reads_counts_per_layer(config: Any) -> bool:
    """Whether the model that `config` describes has twice as many experts in its first MoE layer, and only there, where the
    configuration says so."""
    model = meta_model(copy.deepcopy(config))
    blocks = find_blocks(model)
    layers, _ = layers_of(model, blocks)
    first = int(blocks[0].name.removeprefix(f"{layers}.").partition(".")[0])
    return any(_is_doubled(config, say, first, blocks) for say in (_by_number, _as_list))


def _is_doubled(config: Any, say: Callable[[Any, str, int], None], layer: int, before: list[MoEBlock]) -> bool:
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    spellings = [text.attribute_map.get(key, key) for key in EXPERT_KEYS]
    key = next((key for key in spellings if type(getattr(text, key, None)) is int), None)
    if key is None:
        return False
    try:
        say(text, key, layer)
        after = find_blocks(meta_model(changed))
    except Exception:  # a configuration's own checks, and whatever a modelling file raises that expects one number
        return False
    first = f".{layer}."
    wanted = {block.name: block.expert_count * (2 if first in f"{block.name}." else 1) for block in before}
    return all(_experts(block) == wanted.get(block.name) == block.expert_count for block in after)


def _experts(block: MoEBlock) -> int | None:
    """The rows of its experts' weights; None where these differ."""
    rows = {parameter.shape[0] for parameter in block.experts.parameters() if parameter.ndim > 2}
    return rows.pop() if len(rows) == 1 else None


def _by_number(text: Any, key: str, layer: int) -> None:
    own = {int(number): dict(values) for number, values in (text.to_dict().get("per_layer_config") or {}).items()}
    own[layer] = own.get(layer, {}) | {key: 2 * getattr(text, key)}
    text.per_layer_config = own


def _as_list(text: Any, key: str, layer: int) -> None:
    count = getattr(text, key)
    setattr(text, key, [2 * count if number == layer else count for number in range(text.num_hidden_layers)])
