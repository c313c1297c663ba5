"""Two real ranks draw, score and train in two rounds, are killed in the middle, and go on: the files are those of an undisturbed
run; one rank draws and scores the same; ZeRO-2 and ZeRO-3 leave the same weights."""

import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from rank_launcher import ranks
from safetensors.torch import load_file
from small_run import TASK, make_small, small_values

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_values

TRAIN = str(ROOT / "toolkit" / "train.py")
KILLED = [str(ROOT / "tests" / "killed_run.py"), "toolkit.recovery.checkpoints:CheckpointRotation.on_save"]
TRAINER = {
    "max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no", "save_steps": 1, "learning_rate": 1e-3,
    "warmup_steps": 0,
}  # fmt: skip
# 70 prompts are two pieces: each rank has one
WRITTEN = {
    "self_generated": True, "writer": "student", "rounds": 2, "task": "playground/arithmetic", "examples": 70, "samples": 1,
}  # fmt: skip
VALUES = small_values(
    finetuning={
        "zero": 2, "max_length": 96, "examples": 8, "teacher": "original", "data": [{"task": TASK}, WRITTEN], "trainer": TRAINER,
    },
    evaluation={"models": ["recovered"], "examples": 2, "max_new_tokens": 6, "batch_size": 8, "off_task": False},
)  # fmt: skip


def output_of(folder: Path, number: int, *arguments: str, fails: bool = False) -> str:
    command = ranks(number, *arguments)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def weights(run: RunDirectory) -> list[dict[str, torch.Tensor]]:
    """That the first training leaves, and the last."""
    return [load_file(folder / "model.safetensors") for folder in (run.student_round(1).recovered, run.recovered)]


def shards(run: RunDirectory, number: int) -> dict[str, bytes]:
    paths = run.student_round(number)
    found = [path for folder in (paths.answers, paths.teacher) for path in folder.rglob("0*") if path.is_file()]
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in found}


@pytest.mark.launcher
def test_killed_or_not_and_on_any_number_of_ranks_the_student_is_the_same(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / "r.yaml").write_text(dump_values(VALUES))
    killed, whole, alone, zero3 = (RunDirectory(name, tmp_path / "runs") for name in ("small", "whole", "alone", "zero3"))
    output_of(tmp_path, 2, *KILLED, "3", "run", "r.yaml", fails=True)  # after the first step of the second round
    assert "student/2/teacher" in killed.done() and "recover" not in killed.done()
    resumed = output_of(tmp_path, 2, TRAIN, "r.yaml")
    assert "going on from runs/small/checkpoints/recovered/checkpoint-1" in resumed and "recover" in killed.done()
    output_of(tmp_path, 2, TRAIN, "r.yaml", "name=whole")
    output_of(tmp_path, 1, TRAIN, "r.yaml", "name=alone")
    output_of(tmp_path, 2, TRAIN, "r.yaml", "name=zero3", "finetuning.zero=3")
    for number in (1, 2):
        assert len(shards(killed, number)) >= 3 and shards(killed, number) == shards(whole, number)
    assert shards(alone, 1) == shards(whole, 1) == shards(zero3, 1)
    for mine, other in zip(weights(killed), weights(whole), strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    for mine, other in zip(weights(zero3), weights(whole), strict=True):
        assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in mine.items())
    first, last = weights(whole)
    assert any(not torch.equal(tensor, first[name]) for name, tensor in last.items())
