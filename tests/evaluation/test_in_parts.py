"""Ranks that hold a model together stay in step, though their rows end and leave at different times."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import PLAYGROUND
from rank_launcher import RANKS, ranks

from toolkit.evaluation import evaluate
from toolkit.evaluation.off_task import measure_off_task, read_off_task
from toolkit.moe import load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.off_task import OffTaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.tasks import DataCache, Task


@pytest.mark.launcher
def test_a_model_in_parts_answers_as_a_whole_one(tmp_path: Path) -> None:
    path, script = str(PLAYGROUND / "model"), str(Path(__file__).with_name("in_parts.py"))
    done = subprocess.run(
        ranks(RANKS, script, path, str(tmp_path)), cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    task = Task(TaskRecipe.model_validate({"name": "playground/arithmetic"}))
    whole = evaluate(load_model(path), load_tokenizer(path), task, examples=20, max_new_tokens=48, temperature=1.0)
    assert json.loads((tmp_path / "items.json").read_text()) == [asdict(item) for item in whole.items]
    assert len({item.tokens for item in whole.items}) > 5
    shots = Task(TaskRecipe.model_validate({"name": "playground/arithmetic", "shots": 5}))
    alone_with_shots = evaluate(load_model(path), load_tokenizer(path), shots, examples=9, max_new_tokens=48)
    assert json.loads((tmp_path / "with_shots.json").read_text()) == [asdict(item) for item in alone_with_shots.items]
    assert done.stdout.count("that every prompt begins with are computed once") == 1
    recipe = Recipe.model_validate({"name": "whole", "model": path, "task": task.name, "calibration": {"batch_size": 2}})
    texts = read_off_task(OffTaskRecipe(examples=5), recipe, load_tokenizer(path), DataCache()).batches
    in_parts, alone = json.loads((tmp_path / "off_task.json").read_text()), measure_off_task(load_model(path), texts, None)
    assert in_parts["loss"] == pytest.approx(alone.loss, abs=1e-5) and in_parts["tokens"] == alone.tokens
    assert in_parts["kl"] == pytest.approx(0, abs=1e-5) and in_parts["agreement"] == 1
