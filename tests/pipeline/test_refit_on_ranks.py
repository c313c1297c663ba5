"""Two real ranks refit a run, are killed in the middle, and go on: the files are those of an undisturbed run of two, and the
weights those of one rank up to rounding."""

import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from rank_launcher import ranks
from safetensors.torch import load_file
from small_run import make_small, small_values

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_values

TRAIN = str(ROOT / "toolkit" / "train.py")
KILLED = [str(ROOT / "tests" / "killed_run.py"), "toolkit.recovery.refit.layer_files:LayerFiles.save"]
TRAINER = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_strategy": "no"}
VALUES = small_values(
    pruning={"keep": 4, "refit": True},
    calibration={"examples": 24, "batch_size": 4},
    finetuning={"zero": 2, "examples": 8, "trainer": TRAINER},
    evaluation={"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2},
)


def output_of(folder: Path, number: int, *arguments: str, fails: bool = False) -> str:
    command = ranks(number, *arguments)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def refitted(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / name / "refitted" / "model.safetensors")


@pytest.mark.launcher
def test_killed_or_not_two_ranks_leave_the_same_refitted_model(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / "r.yaml").write_text(dump_values(VALUES))
    output_of(tmp_path, 2, *KILLED, "1", "run", "r.yaml", fails=True)
    killed = RunDirectory("small", tmp_path / "runs")
    assert "prune" in killed.done() and "refit" not in killed.done() and not killed.refitted.exists()
    resumed = output_of(tmp_path, 2, TRAIN, "r.yaml")
    assert "1 of 2 layers are refit already" in resumed and "prune                done already" in resumed
    assert {"refit", "evaluate/refitted", "recover", "evaluate/recovered", "report"} <= killed.done().keys()
    again = output_of(tmp_path, 2, TRAIN, "r.yaml")
    assert again.count("done already, skipped") == len(killed.done())
    for name, number in (("two", 2), ("one", 1)):
        output_of(tmp_path, number, TRAIN, "r.yaml", f"name={name}", "evaluation.models=[refitted]")
    files = [tmp_path / "runs" / name / "refitted" / "model.safetensors" for name in ("small", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    alone = refitted(tmp_path, "one")
    assert all(torch.allclose(tensor, alone[name], atol=1e-5) for name, tensor in refitted(tmp_path, "two").items())
