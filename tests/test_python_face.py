"""What README and design promise to notebooks and other tools."""

import subprocess
import sys
from pathlib import Path

import toolkit
from toolkit.moe import find_blocks, load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import encode_all, padded_batches


def test_importing_the_toolkit_is_instant_and_its_names_are_all_there() -> None:
    code = "import sys, toolkit; assert 'torch' not in sys.modules; [getattr(toolkit, name) for name in toolkit.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_calibrate_select_prune_and_evaluate_without_a_recipe(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen3_moe")
    task = toolkit.Task(TaskRecipe(name="playground/sorting"))
    tokenizer = load_tokenizer(str(source))
    encoded, _ = encode_all(tokenizer, task.examples("train")[:6], 128)
    statistics = toolkit.calibrate(source, padded_batches(encoded, 3, tokenizer.pad_token_id))
    statistics.save(tmp_path / "calibration")
    plan = toolkit.select(toolkit.ExpertStatistics.load(tmp_path / "calibration"), criterion="reap", keep=4)
    plan.save(tmp_path / "plan.json")
    toolkit.prune(source, toolkit.Plan.load(tmp_path / "plan.json"), tmp_path / "pruned")
    pruned = load_model(str(tmp_path / "pruned"))
    assert all(block.expert_count == 4 for block in find_blocks(pruned))
    scores = toolkit.evaluate(pruned, tokenizer, task, examples=3, max_new_tokens=2)
    assert scores.n == 3 and 0 <= scores.interval[0] <= scores.score <= scores.interval[1] <= 1
