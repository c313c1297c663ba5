"""Two real ranks find the shape that one finds; killed while they measure, they go on and end as if undisturbed."""

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, tiny_model
from rank_launcher import ranks
from small_run import make_small, small_values

from toolkit.cuts.fit_result import FitResult, ShapeRecord
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_values

KILLED = [str(ROOT / "tests" / "killed_run.py"), "toolkit.pipeline.fit_measure:ShapeMeasurements._keep"]
FIT = {"measured": 2, "examples": 6, "cuts": ["experts", "width"], "refit": {"examples": 12}}


def output_of(folder: Path, number: int, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(ranks(number, *arguments), cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.launcher
def test_killed_or_not_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    make_small(tmp_path)
    tiny_model("mixtral", vocab_size=768, eos_token_id=1).save_pretrained(tmp_path / "original")
    values = small_values(
        pruning={"width_multiple": 4, "fit": FIT | {"bytes": int(0.8 * checkpoint_bytes(tmp_path / "original"))}},
        calibration={"examples": 12, "batch_size": 4},
        evaluation={"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2, "models": ["refitted"]},
    )
    (tmp_path / "r.yaml").write_text(dump_values(values))
    output_of(tmp_path, 2, *KILLED, "2", "fit", "r.yaml", fails=True)
    killed = RunDirectory("small", tmp_path / "runs")
    assert "fit/scores" in killed.done() and "fit/measure" not in killed.done()
    resumed = output_of(tmp_path, 2, "--module", "toolkit.cli", "fit", "r.yaml")
    assert "2 of 3 have been measured already" in resumed
    for name, number in (("two", 2), ("one", 1)):
        output_of(tmp_path, number, "--module", "toolkit.cli", "fit", "r.yaml", f"name={name}")
    found = {name: FitResult.load(tmp_path / "runs" / name / "fit.json") for name in ("small", "two", "one")}
    assert _facts(found["small"]) == _facts(found["two"])
    assert found["one"].choice.shape == found["two"].choice.shape and found["one"].axes == found["two"].axes
    for ours, theirs in zip(_measured(found["one"]), _measured(found["two"]), strict=True):
        assert ours.shape == theirs.shape and ours.measured and theirs.measured and ours.measured.loss is not None
        assert ours.measured.loss == pytest.approx(theirs.measured.loss, abs=1e-4) and ours.bytes == theirs.bytes


def _measured(result: FitResult) -> list[ShapeRecord]:
    return [shape for shape in result.shapes if shape.measured]


def _facts(result: FitResult) -> list[dict]:
    return [shape.model_dump(exclude={"measured": {"seconds"}}) for shape in result.shapes]
