"""Run by test_resume.py on two ranks: recovers, one after the other, what a file of recipes holds.

A recipe with `stop_at` is given up on every rank after that step, without a word to the trainer.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).parents[2])

from transformers import TrainerCallback

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.stages.recover import dev_accuracy
from toolkit.recipe.schema import Recipe
from toolkit.recovery import trainer
from toolkit.recovery.recover import recover
from toolkit.runtime.distributed import is_main, say, start, stop
from toolkit.runtime.errors import PollardError


class Stop(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise PollardError(f"stopped after step {self.step}")


root, early_stopping = Path(sys.argv[-2]), trainer._early_stopping
start()
for name, values in json.loads((root / sys.argv[-1]).read_text()).items():
    stop_at = Stop(values.pop("stop_at", None))
    recipe = Recipe.model_validate(values)
    try:
        with mock.patch.object(trainer, "_early_stopping", lambda recipe, stop_at=stop_at: [stop_at, *early_stopping(recipe)]):
            facts = recover(recipe, str(root), accuracy=dev_accuracy(RunContext(recipe)))
    except PollardError as error:
        say(str(error))
        facts = {"error": str(error)}
    if is_main():
        (root / name / "facts.json").write_text(json.dumps(facts))
stop()
