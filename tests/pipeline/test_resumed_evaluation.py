"""The real command, killed while a model answers, and gone on with by another number of ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT
from rank_launcher import ranks

RECIPE = [
    str(ROOT / "recipes" / "playground.yaml"), f"model={PLAYGROUND / 'model'}", "calibration.examples=16",
    "evaluation.models=[original]", "evaluation.examples=40", "evaluation.batch_size=4", "evaluation.max_new_tokens=48",
    "evaluation.temperature=0.8", "evaluation.samples=2",
]  # fmt: skip
TRAIN = str(ROOT / "toolkit" / "train.py")


def command(number: int) -> list[str]:
    return ranks(number, TRAIN, *RECIPE) if number > 1 else [sys.executable, TRAIN, *RECIPE]


def run(folder: Path, number: int) -> str:
    """What the finished run said; its predictions are in the folder."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command(number), cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def evaluation(folder: Path) -> Path:
    return folder / "runs" / "playground" / "evaluation"


def predictions(folder: Path) -> bytes:
    return (evaluation(folder) / "original.predictions.jsonl").read_bytes()


def kill_while_answering(folder: Path, enough: int) -> int:
    """Starts a run of one rank and kills it when so many answers are there; how many there were."""
    folder.mkdir()
    process = subprocess.Popen(command(1), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, until = evaluation(folder) / "original.answers" / "0.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") <= enough:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return path.read_bytes().count(b"\n") - 1


@pytest.mark.launcher
def test_killed_or_not_by_one_rank_or_two_the_predictions_are_the_same_file(tmp_path: Path) -> None:
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    run(one, 1)
    assert len(predictions(one).splitlines()) == 40
    first = json.loads(predictions(one).splitlines()[0])
    assert len(first["samples"]) == 2
    run(two, 2)
    assert predictions(two) == predictions(one)
    there = kill_while_answering(killed, enough=8)
    assert 8 <= there < 80
    said = run(killed, 2)
    assert f"{there} of 80 answers are there already" in said
    assert predictions(killed) == predictions(one)
    assert not list(evaluation(killed).glob("*.answers"))
