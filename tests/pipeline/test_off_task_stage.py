"""The stages that measure what models lost beside their task: when they run, what they leave, and what is told of it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, raises
from rank_launcher import RANKS, ranks
from small_run import redone, small_folder, small_recipe, small_values

from toolkit.estimate import resolve_machine
from toolkit.evaluation import completion_loss
from toolkit.evaluation.off_task import read_off_task
from toolkit.moe import load_model
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages, run
from toolkit.pipeline.stages import off_task
from toolkit.recipe.file import dump_values
from toolkit.recipe.schema import Recipe

NOTES = "\n\n".join(f"The {thing} was left at the station on day {i}." for i, thing in enumerate(("hat", "map", "dog", "key")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of `like()`."""
    with small_folder(tmp_path_factory, "off_task") as folder:
        (folder / "notes.txt").write_text(NOTES)
        run(like())
        yield folder


def like(**changes: object) -> Recipe:
    return small_recipe(**{"evaluation__off_task": {"text": "notes.txt"}, **changes})


def found(role: str, name: str = "small") -> dict[str, float]:
    return json.loads(Path(f"runs/{name}/evaluation/{role}.off_task.json").read_text())


def test_every_evaluated_model_is_measured_before_its_score_unless_it_is_switched_off(folder: Path) -> None:
    names = [stage.name for stage in plan_stages(small_recipe(evaluation__off_task=True))]
    assert names == [
        "calibrate", "select", "prune", "off_task/original", "evaluate/original", "off_task/pruned", "evaluate/pruned", "report",
    ]  # fmt: skip
    models = ["original", "pruned", "refitted", "recovered"]
    every = like(evaluation__models=models, control=True, pruning={"keep": 4, "refit": True})
    measured = [stage.name for stage in plan_stages(every) if stage.kind == "off_task"]
    assert measured == [f"off_task/{role}" for role in (*models, "control")]
    assert not any(stage.kind == "off_task" for stage in plan_stages(like(evaluation__off_task=False)))


def test_it_is_the_loss_of_the_checkpoint_that_was_written(folder: Path) -> None:
    recipe = like()
    assert recipe.evaluation.off_task
    context = RunContext(recipe)
    texts = read_off_task(recipe.evaluation.off_task, recipe, context.tokenizer, context.data)
    for role, path in (("original", "original"), ("pruned", "runs/small/pruned")):
        assert found(role)["loss"] == pytest.approx(completion_loss(load_model(path), texts.batches).mean, abs=1e-6)
    assert (found("original")["kl"], found("original")["agreement"]) == (None, None)
    assert found("pruned")["kl"] > 1e-5 and 0 < found("pruned")["agreement"] <= 1
    assert (found("pruned")["name"], found("pruned")["texts"]) == ("notes.txt", 4)


def test_what_it_leaves_is_in_every_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(Path("runs/small/report.json").read_text())
    assert report["off_task"] == {role: found(role) for role in ("original", "pruned")}
    run(like())
    loss = f"{found('pruned')['loss']:.4f}"
    for text in (
        capsys.readouterr().out, Path("runs/small/report.html").read_text(), Path("runs/small/README.md").read_text(),
    ):  # fmt: skip
        assert loss in text
    run(small_recipe(name="without"))
    assert "off_task" not in json.loads(Path("runs/without/report.json").read_text())
    assert "What it lost elsewhere: not measured" in Path("runs/without/README.md").read_text()


def test_it_depends_on_its_data_and_on_the_models_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["off_task/original", "off_task/pruned", "report"]
    Path("notes.txt").write_text(NOTES + "\n\nNobody came for it.")
    assert redone(like(), capsys) == both and found("pruned")["texts"] == 5
    assert redone(like(evaluation__off_task={"text": "notes.txt", "examples": 2}), capsys) == both
    Path("notes.txt").write_text(NOTES)
    assert redone(like(), capsys) == both
    assert redone(like(evaluation__max_new_tokens=5), capsys) == ["evaluate/original", "evaluate/pruned", "report"]
    assert redone(like(), capsys) == ["evaluate/original", "evaluate/pruned", "report"]


def test_killed_and_resumed_it_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = like(name="killed", calibration={"examples": 8, "batch_size": 1})  # a file for each text
    run(recipe.model_copy(update={"name": "whole"}))

    def kill(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(off_task, "measure_off_task", kill)  # what the original says is there by then
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    kept = sorted(Path("runs/killed/off_task").glob("*.safetensors"))
    assert len(kept) == 4
    kept[2].unlink()
    before = kept[0].stat().st_mtime_ns
    run(recipe)
    assert kept[0].stat().st_mtime_ns == before and kept[2].exists()
    assert [found(role, "killed") for role in ("original", "pruned")] == [found(role, "whole") for role in ("original", "pruned")]


def test_what_the_original_says_can_be_removed_and_is_made_again_where_it_is_needed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, before = RunDirectory("small"), found("pruned")
    for path in directory.off_task.iterdir():
        path.unlink()
    assert redone(like(), capsys) == []
    assert "off_task/original" in redone(like(pruning__keep=3), capsys)
    assert redone(like(), capsys) == ["select", "prune", "off_task/pruned", "evaluate/pruned", "report"]
    assert found("pruned") == before


def test_where_the_original_is_not_evaluated_the_loss_is_measured_alone(folder: Path) -> None:
    run(like(name="alone", evaluation__models=["pruned"]))
    assert not Path("runs/alone/off_task").exists()
    alone = found("pruned", "alone")
    assert (alone["kl"], alone["agreement"]) == (None, None) and alone["loss"] == found("pruned")["loss"]


def test_what_cannot_be_read_is_told_before_the_first_stage(folder: Path) -> None:
    Path("empty.txt").write_text(" \n")
    Path("letters.txt").write_text("a\n\nb")
    for name, code in (("nowhere.txt", "data.no-file"), ("empty.txt", "text.empty"), ("letters.txt", "off-task.no-tokens")):
        with raises(code, name):
            run(like(name="bad", evaluation__off_task={"text": name}))
        assert not Path("runs/bad").exists()


def test_with_servers_a_line_says_that_it_is_not_measured(folder: Path) -> None:
    servers = {"original": "http://localhost:1/v1", "pruned": "http://localhost:2/v1"}

    def notes(data: object) -> tuple[list[str], int]:
        recipe = small_recipe(evaluation__backend="server", evaluation__servers=servers, evaluation__off_task=data)
        told = [note for note in check(RunContext(recipe)) if "evaluation.off_task" in note]
        return told, sum(stage.kind == "off_task" for stage in plan_stages(recipe))

    told, measured = notes(True)
    assert len(told) == 1 and "servers return no probabilities" in told[0] and measured == 0
    assert notes(False) == ([], 0)
    assert notes({"text": "notes.txt"}) == ([], 2)  # then models are loaded here


def test_the_estimate_knows_them(folder: Path) -> None:
    stages = {stage.name: stage for stage in Estimator(resolve_machine(1, 1, "h100", None, None)).estimate(like()).stages}
    assert stages["off_task/original"].disk > 0 == stages["off_task/pruned"].disk
    assert "at most" not in stages["off_task/original"].work  # counted: the tokenizer is here
    assert stages["off_task/original"].gpu_bytes > stages["off_task/pruned"].gpu_bytes > 0


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(folder: Path) -> None:
    values = small_values(evaluation__off_task=True, calibration={"examples": 8, "batch_size": 3})
    Path("both.yaml").write_text(dump_values(values | {"name": "two"}))
    run(Recipe.model_validate(values | {"name": "one"}))
    command = ranks(RANKS, "--module", "toolkit.cli", "run", "both.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for role in ("original", "pruned"):
        assert found(role, "one") == found(role, "two")
