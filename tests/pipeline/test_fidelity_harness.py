"""The stages beside the scores: what they leave, when they run again, and what is told of them."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from rank_launcher import RANKS, ranks
from small_harness import make_task, own_alone
from small_run import make_small, redone, small_recipe, small_values

from toolkit.estimate import resolve_machine
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages, run
from toolkit.recipe.file import dump_values
from toolkit.recipe.schema import Recipe
from toolkit.runtime import distributed
from toolkit.runtime.errors import PollardError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of `like()`, which compares over four gold answers."""
    folder = tmp_path_factory.mktemp("evaluation_stages")
    make_small(folder)
    make_task(folder / "tasks")
    distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(like())
        yield folder
    distributed.stop()


def like(**changes: object) -> Recipe:
    return small_recipe(**{"evaluation__fidelity": 4, **changes})


def left() -> dict[str, float]:
    return json.loads(Path("runs/small/evaluation/pruned.fidelity.json").read_text())


def test_fidelity_is_measured_before_the_scores_and_only_where_it_is_asked_for(folder: Path) -> None:
    names = [stage.name for stage in plan_stages(like())]
    assert names == [
        "calibrate", "select", "prune", "fidelity/original", "evaluate/original", "fidelity/pruned", "evaluate/pruned", "report",
    ]  # fmt: skip
    assert [name for name in names if "fidelity" not in name] == [stage.name for stage in plan_stages(small_recipe())]


def test_what_it_leaves_is_in_the_report_on_the_page_and_in_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = left()
    assert (found["examples"], found["left_out"], found["split"]) == (4, 0, "test")
    assert found["kl"] > 1e-5 and 0.9 < found["acceptance"] < 1
    report = json.loads(Path("runs/small/report.json").read_text())
    assert report["fidelity"] == {"pruned": found}
    acceptance = f"{100 * found['acceptance']:.1f} ± {100 * found['acceptance_error']:.1f} %"
    assert acceptance in Path("runs/small/report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    run(like())
    assert f"acceptance {acceptance}" in capsys.readouterr().out


def test_it_depends_on_neither_score_settings_nor_do_scores_depend_on_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["fidelity/original", "fidelity/pruned", "report"]
    assert redone(like(evaluation__fidelity=3), capsys) == both
    assert left()["examples"] == 3
    assert redone(like(), capsys) == both
    assert redone(like(evaluation__max_new_tokens=5), capsys) == ["evaluate/original", "evaluate/pruned", "report"]
    assert redone(like(), capsys) == ["evaluate/original", "evaluate/pruned", "report"]
    assert redone(like(pruning__keep=5), capsys) == ["select", "prune", "fidelity/pruned", "evaluate/pruned", "report"]
    assert redone(like(), capsys) == ["select", "prune", "fidelity/pruned", "evaluate/pruned", "report"]


def test_what_the_original_said_serves_again_and_its_loss_is_told(folder: Path) -> None:
    directory, before = RunDirectory("small"), left()
    said = directory.fidelity / "00000.safetensors"
    kept = said.read_bytes()
    said.unlink()
    with pytest.raises(PollardError, match="missing or damaged"):
        run(like(pruning__keep=3))
    said.write_bytes(kept)
    run(like())
    assert left() == before


def test_the_estimate_knows_them(folder: Path) -> None:
    found = {stage.name: stage for stage in Estimator(resolve_machine(1, 1, "h100", None, None)).estimate(like()).stages}
    assert found["fidelity/original"].disk > 0 == found["fidelity/pruned"].disk
    assert found["fidelity/original"].gpu_bytes > found["fidelity/pruned"].gpu_bytes > 0


HARNESS = {"evaluation__harness": ["small_choice"], "evaluation__harness_tasks": "tasks"}


def test_other_tasks_are_asked_of_every_model_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(small_recipe(name="harness", **HARNESS))
    assert "harness/pruned" in capsys.readouterr().out
    report = json.loads(Path("runs/harness/report.json").read_text())
    (row,) = report["harness"]
    found = json.loads(Path("runs/harness/evaluation/pruned.harness.json").read_text())["small_choice"]
    assert (row["task"], row["metric"], row["n"], list(row["models"])) == ("small_choice", "acc", 8, ["original", "pruned"])
    assert row["models"]["pruned"] == found["metrics"]["acc"]
    assert f">{found['metrics']['acc']['value']:.4f} ±" in Path("runs/harness/report.html").read_text()
    Path("tasks/questions.jsonl").write_text(Path("tasks/questions.jsonl").read_text().replace("olive", "lemon"))
    assert redone(small_recipe(name="harness", **HARNESS), capsys) == ["harness/original", "harness/pruned", "report"]


def test_an_unknown_task_is_told_before_the_first_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_alone(monkeypatch)
    with pytest.raises(PollardError, match="Did you mean `small_choice`"):
        run(small_recipe(name="unknown", **HARNESS | {"evaluation__harness": ["small_choise"]}))
    assert not Path("runs/unknown").exists()


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(folder: Path) -> None:
    values = small_values(evaluation__fidelity=4, calibration={"examples": 8, "batch_size": 2}, **HARNESS)
    Path("both.yaml").write_text(dump_values(values | {"name": "two"}))
    run(Recipe.model_validate(values | {"name": "one"}))
    command = ranks(RANKS, "--module", "toolkit.cli", "run", "both.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for file in ("pruned.fidelity.json", "pruned.harness.json", "original.harness.json"):
        one, two = (Path("runs", name, "evaluation", file).read_text() for name in ("one", "two"))
        assert one == two
