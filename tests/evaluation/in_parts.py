"""Run by test_in_parts.py on two ranks: the playground model in parts over two ranks answers questions."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from toolkit.evaluation import AnswerLog, evaluate, write_reference
from toolkit.evaluation.off_task import Reference, measure_off_task, read_off_task
from toolkit.moe import load_tokenizer
from toolkit.moe.partition import partitioned_model
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.off_task import OffTaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import is_main, start, stop
from toolkit.runtime.zero import start_deepspeed
from toolkit.tasks import DataCache, Task

path, target = sys.argv[-2], Path(sys.argv[-1])
start()
start_deepspeed()
task = Task(TaskRecipe.model_validate({"name": "playground/arithmetic"}))
recipe = Recipe.model_validate({"name": "parts", "model": path, "task": task.name, "calibration": {"batch_size": 2}})
zero = {"stage": 3, "stage3_param_persistence_threshold": 0}  # small tensors would stay whole
with partitioned_model(path, None, "float32", zero) as model:
    # Seven batches on two ranks: one rank helps with a prompt whose answer nobody needs
    log = AnswerLog(target / "log", "model")
    found = evaluate(model, load_tokenizer(path), task, examples=20, batch_size=3, max_new_tokens=48, temperature=1.0, log=log)
    # Three batches on two ranks, likewise
    texts = read_off_task(OffTaskRecipe(examples=5), recipe, load_tokenizer(path), DataCache()).batches
    write_reference(model, texts, target / "off_task", "original")
    off_task = measure_off_task(model, texts, Reference(target / "off_task", "original"))
    again = evaluate(model, load_tokenizer(path), task, examples=20, batch_size=3, max_new_tokens=48, temperature=1.0, log=log)
    # Three batches that begin with the same shots; each rank computes these, and helps with a fourth
    shots = Task(TaskRecipe.model_validate({"name": "playground/arithmetic", "shots": 5}))
    with_shots = evaluate(model, load_tokenizer(path), shots, examples=9, batch_size=3, max_new_tokens=48)
assert found.items == again.items
if is_main():
    (target / "off_task.json").write_text(json.dumps(off_task.to_json()))
    (target / "items.json").write_text(json.dumps([asdict(item) for item in found.items]))
    (target / "with_shots.json").write_text(json.dumps([asdict(item) for item in with_shots.items]))
stop()
