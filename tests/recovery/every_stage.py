"""Run by test_recover.py under the deepspeed launcher: fine-tunes the same pruned model under every ZeRO preset."""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from toolkit.distributed import is_main, start, stop
from toolkit.recipe import Recipe
from toolkit.recovery import recover

root = Path(sys.argv[-1])
start()
for name, values in json.loads((root / "recipes.json").read_text()).items():
    facts = recover(Recipe.model_validate(values), str(root))
    if is_main():
        (root / name / "facts.json").write_text(json.dumps(facts))
stop()
