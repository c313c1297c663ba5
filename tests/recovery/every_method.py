"""Run by test_methods.py on two ranks or more: trains the same pruned model by every method.

Neighbouring ranks never choose the same expert: what one rank's tokens pass, the other's must not wait for.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[2])

import torch

from toolkit.recipe.schema import Recipe
from toolkit.recovery.recover import recover
from toolkit.runtime.distributed import is_main, rank, start, stop


def route_apart(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Sends the tokens of even ranks to the even experts and those of odd ones to the odd experts."""
    if not hasattr(module, "is_transposed"):
        return None
    hidden, index, weights = args
    return hidden, index // 2 * 2 + rank() % 2, weights


root = Path(sys.argv[-1])
start()
torch.nn.modules.module.register_module_forward_pre_hook(route_apart)
for name, values in json.loads((root / "recipes.json").read_text()).items():
    facts = recover(Recipe.model_validate(values), str(root))
    if is_main():
        (root / name / "facts.json").write_text(json.dumps(facts))
stop()
