"""The real command, killed at random times: whatever it had done, the rerun ends with what an undisturbed run ends with."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import kill


@pytest.mark.launcher
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    kill.make(tmp_path / "original", layers=4, hidden=64)
    command = kill.Command(tmp_path, "prune", ["calibration.examples=32"], file_bytes=200_000)
    assert kill.kill_and_compare(command, kills=3, seed=0) == []
    assert {*command.results("undisturbed")} > {"plan.json", "pruned/model.safetensors.index.json", "pruned/config.json"}


@pytest.mark.launcher
def test_three_kills_while_the_original_teaches_and_the_result_is_saved_change_nothing(tmp_path: Path) -> None:
    trainer = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 2, "eval_strategy": "no", "save_steps": 2}
    overrides = [f"finetuning.trainer.{key}={value}" for key, value in trainer.items()]
    overrides += ["calibration.examples=8", "evaluation.models=[recovered]", "evaluation.examples=8"]
    command = kill.Command(tmp_path, "evaluate", [*kill.TAUGHT, *overrides], file_bytes=5_000_000)
    assert kill.kill_and_compare(command, kills=3, seed=3, parts=["answers", "teacher", "saving"]) == []
    assert {*command.results("undisturbed")} > {
        "answers/1/00003.jsonl", "teacher/00003.safetensors", "training_log.jsonl", "recovered/model.safetensors",
        "evaluation/recovered.predictions.jsonl",
    }  # fmt: skip


def test_a_run_that_fails_is_no_run_that_was_killed(tmp_path: Path) -> None:
    command = kill.Command(tmp_path, "prune", ["no.such.key=1"], file_bytes=200_000)
    with pytest.raises(RuntimeError, match=r"no\.such"):
        command.run("failed")
