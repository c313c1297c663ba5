"""Run by test_resume.py under the deepspeed launcher: recovers, one after the other, what recipes.json holds."""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from toolkit.distributed import is_main, say, start, stop
from toolkit.errors import PollardError
from toolkit.recipe import Recipe
from toolkit.recovery.recover import recover
from toolkit.stages import dev_accuracy

root = Path(sys.argv[-2])
start()
for name, values in json.loads((root / sys.argv[-1]).read_text()).items():
    recipe = Recipe.model_validate(values)
    try:
        facts = recover(recipe, str(root), accuracy=dev_accuracy(recipe))
    except PollardError as error:
        say(str(error))
        facts = {"error": str(error)}
    if is_main():
        (root / name / "facts.json").write_text(json.dumps(facts))
stop()
