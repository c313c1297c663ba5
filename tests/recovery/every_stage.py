"""Run by test_recover.py on two ranks: fine-tunes the same pruned model under every ZeRO preset, then
loads it in parts, as it is and in ways that must be noticed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).parents[2])

import deepspeed
import torch
from transformers.integrations import deepspeed as integration

from toolkit.moe import check_loaded, find_blocks, partitioned_model
from toolkit.moe.partition import local_part
from toolkit.recipe.schema import Recipe
from toolkit.recovery.recover import recover
from toolkit.runtime.distributed import gather, is_main, start, stop
from toolkit.runtime.errors import PollardError
from toolkit.runtime.zero import partitioned_config

root = Path(sys.argv[-1])
start()
recipes = {name: Recipe.model_validate(values) for name, values in json.loads((root / "recipes.json").read_text()).items()}
for name, recipe in recipes.items():
    facts = recover(recipe, str(root))
    if is_main():
        (root / name / "facts.json").write_text(json.dumps(facts))
recover(recipes["zero2"], str(root), "control")


def refusal(recipe: Recipe) -> str:
    """What `recover` says before it trains."""
    try:
        recover(recipe, str(root))
    except PollardError as error:
        return str(error)
    return ""


convert: Any = integration._apply_weight_conversions_to_state_dict


def forgetful(*arguments: Any) -> Iterator[dict[str, Any]]:
    """Loads all but the experts, as some releases of transformers did, without a word."""
    for converted in convert(*arguments):
        yield {name: tensor for name, tensor in converted.items() if "experts" not in name}


found: dict[str, Any] = {}
with mock.patch.object(integration, "_apply_weight_conversions_to_state_dict", forgetful):
    found["forgotten"] = gather(refusal(recipes["partitioned"]))
path = str(root / "partitioned" / "pruned")
with partitioned_model(path, None, "auto", partitioned_config(recipes["partitioned"].finetuning.zero)) as model:
    check_loaded(model, path)
    parameters: list[Any] = list(model.parameters())
    found["total"] = sum(parameter.ds_numel for parameter in parameters)
    found["held"] = gather(sum(parameter.ds_tensor.numel() + parameter.numel() for parameter in parameters))
    found["without_padding"] = gather(sum(local_part(parameter).numel() for parameter in parameters))
    with deepspeed.zero.GatheredParameters([find_blocks(model)[1].experts.down_proj], modifier_rank=0):
        if is_main():
            torch.nn.init.normal_(find_blocks(model)[1].experts.down_proj, std=0.02)  # type: ignore[arg-type]
    try:
        check_loaded(model, path)
    except PollardError as error:
        found["initialised"] = str(error)
if is_main():
    (root / "in_parts.json").write_text(json.dumps(found))
stop()
