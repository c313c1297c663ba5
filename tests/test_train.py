"""The real command, started and killed as a user would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT
from rank_launcher import free_port

from toolkit.cuts.plan import Plan

SMALL = [
    f"model={PLAYGROUND / 'model'}", "calibration.examples=16", "evaluation.examples=8", "evaluation.batch_size=4",
    "evaluation.max_new_tokens=16", "finetuning.trainer.max_steps=4", "finetuning.trainer.logging_steps=1",
    "finetuning.trainer.per_device_train_batch_size=2", "finetuning.trainer.eval_strategy=no", "finetuning.examples=32",
]  # fmt: skip
RECIPE = str(ROOT / "recipes" / "playground.yaml")


def launched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["deepspeed", "--num_gpus", "2", "--master_port", free_port()]
    command += [str(ROOT / "toolkit" / "train.py"), RECIPE, *SMALL, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.launcher
def test_one_command_takes_a_model_through_the_whole_job_on_two_ranks(tmp_path: Path) -> None:
    done = launched(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for row in ("original", "pruned", "recovered"):
        assert sum(row in line for line in done.stdout.splitlines()) >= 2  # its stage, and its row of the table
    manifest = json.loads((tmp_path / "runs" / "playground" / "manifest.json").read_text())
    assert {stage["ranks"] for stage in manifest["stages"].values()} == {2}
    plan = Plan.load(tmp_path / "runs" / "playground" / "plan.json")
    assert plan.keep == 4 and len(plan.experts.kept) == 4


@pytest.mark.launcher
def test_a_mistake_is_one_message_and_a_failing_exit_status(tmp_path: Path) -> None:
    done = launched(tmp_path, "pruning.kep=2")
    assert done.returncode != 0
    assert done.stdout.count("`pruning.kep` is not a key of a recipe. Did you mean `keep`?") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def run_until(folder: Path, stage: str | None) -> tuple[str, list[str]]:
    """Starts the run and kills it, without warning, a moment after `stage` has begun. Its output and the stages done by then."""
    command = [sys.executable, str(ROOT / "toolkit" / "train.py"), RECIPE, *SMALL, "finetuning.zero=0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if stage and line.startswith(stage) and "skipped" not in line:
            time.sleep(0.2)
            os.kill(process.pid, signal.SIGKILL)
    status = process.wait()
    assert status == (-signal.SIGKILL if stage else 0), "".join(lines)
    return "".join(lines), list(json.loads((folder / "runs" / "playground" / "manifest.json").read_text())["stages"])


# Kills at random moments of every stage: tests/benchmarks/test_kill.py.
@pytest.mark.launcher
def test_killed_in_a_stage_after_another_the_same_command_goes_on_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "undisturbed").mkdir()
    finished: list[str] = []
    for stage in ("calibrate", "evaluate/original", "recover", None):
        output, now_finished = run_until(tmp_path / "killed", stage)
        for earlier in finished:
            assert f"{earlier:<20} done already, skipped" in output
        assert set(finished) <= set(now_finished)
        finished = now_finished
    run_until(tmp_path / "undisturbed", None)
    killed, undisturbed = (tmp_path / name / "runs" / "playground" for name in ("killed", "undisturbed"))
    assert not [left for left in killed.rglob("*.tmp")]
    assert Plan.load(killed / "plan.json").experts == Plan.load(undisturbed / "plan.json").experts
    for role in ("original", "pruned", "recovered"):
        name = f"evaluation/{role}.predictions.jsonl"
        assert (killed / name).read_text() == (undisturbed / name).read_text()
