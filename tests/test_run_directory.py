import json
from pathlib import Path

import pytest

from toolkit.errors import PollardError
from toolkit.run_directory import RunDirectory, fingerprint_of, fingerprint_of_path


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory("try", tmp_path)
    run.path.mkdir()
    run.open("some/model", "gsm8k", "name: try\n", [])
    return run


def test_opening_again_keeps_what_is_finished(run: RunDirectory) -> None:
    run.finish("calibrate", "f1", 1.234)
    run.open("some/model", "gsm8k", "name: try\n", [])
    assert run.is_done("calibrate", "f1")


@pytest.mark.parametrize(
    ("model", "task", "told"),
    [
        ("other/model", "gsm8k", "with model some/model, and this recipe says other/model"),
        ("some/model", "custom", "with task gsm8k, and this recipe says custom"),
    ],
)
def test_another_model_or_task_is_refused(run: RunDirectory, model: str, task: str, told: str) -> None:
    before = run.manifest.read_text()
    with pytest.raises(PollardError, match=rf"{told}\. Give the new run another name \(name=…\), or remove that folder\."):
        run.check_owner(model, task)
    assert run.manifest.read_text() == before


def test_two_runs_never_work_in_one_folder(run: RunDirectory) -> None:
    run.lock()
    other = RunDirectory(run.path.name, run.path.parent)
    with pytest.raises(PollardError, match=rf"Another run is at work in {run.path}"):
        other.lock()
    run.unlock()
    other.lock()
    other.unlock()


def test_a_stage_is_done_only_under_its_own_fingerprint(run: RunDirectory) -> None:
    assert not run.is_done("calibrate", "f1") and not run.was_done("calibrate")
    run.finish("calibrate", "f1", 1.0)
    assert run.is_done("calibrate", "f1") and run.was_done("calibrate")
    assert not run.is_done("calibrate", "f2") and not run.is_done("select", "f1")


def test_a_stage_to_be_done_is_forgotten_and_the_others_are_not(run: RunDirectory) -> None:
    run.finish("calibrate", "f1", 1.0)
    run.finish("select", "f2", 1.0)
    run.open("some/model", "gsm8k", "name: try\n", ["calibrate", "never done"])
    assert not run.was_done("calibrate") and run.is_done("select", "f2")


def test_the_manifest_tells_what_a_stage_did_and_with_what(run: RunDirectory) -> None:
    run.finish("calibrate", "f1", 12.345, examples=512, seed=3)
    stage = json.loads(run.manifest.read_text())["stages"]["calibrate"]
    assert {"status": "done", "seconds": 12.3, "examples": 512, "seed": 3}.items() <= stage.items()
    assert {"torch", "transformers", "trl", "deepspeed"} <= stage["versions"].keys()


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "sta', b"\xff\xfe", b"{}", b"[]"])
def test_a_damaged_manifest_is_explained(run: RunDirectory, content: bytes) -> None:
    run.manifest.write_bytes(content)
    with pytest.raises(PollardError, match=rf"manifest\.json is damaged \(.*\)\. Remove {run.path}, or choose another `name`\."):
        run.check_owner("some/model", "gsm8k")


def test_leftovers_of_killed_stages_are_removed_but_for_a_pruning_that_goes_on(run: RunDirectory) -> None:
    whole = ("pruned.tmp/model-00001-of-00003.safetensors", "rounds/4/pruned.tmp/config.json", "teacher/00000.safetensors")
    half = (
        "pruned.tmp/model-00002-of-00003.safetensors.tmp", "recovered.tmp/config.json", "evaluation/original.json.tmp",
        "answers/1/00003.jsonl.tmp", "teacher/.tmpR0Zd23", "calibration/.tmpx",  # safetensors begins its own names so
    )  # fmt: skip
    for name in (*whole, *half):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("")
    run.open("some/model", "gsm8k", "name: try\n", [])
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {*whole, "manifest.json", "recipe.yaml"}


def test_a_fingerprint_sees_values_and_not_the_order_of_keys() -> None:
    assert fingerprint_of({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint_of({"b": {"d": 3, "c": 2}, "a": 1})
    others = [{"a": 1, "b": 3}, {"a": "1", "b": 2}, {"a": 1}, [["a", 1], ["b", 2]]]
    assert len({fingerprint_of(value) for value in [{"a": 1, "b": 2}, *others]}) == 5
    assert fingerprint_of([1, 2]) != fingerprint_of([2, 1])


def test_a_fingerprint_sees_the_content_of_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("1")
        (tmp_path / name / "config.json").write_text("{}")
    assert fingerprint_of_path(tmp_path / "a") == fingerprint_of_path(tmp_path / "b")
    (tmp_path / "b" / "weights").write_text("2")
    assert fingerprint_of_path(tmp_path / "a") != fingerprint_of_path(tmp_path / "b")
    assert fingerprint_of_path(tmp_path / "a" / "weights") != fingerprint_of_path(tmp_path / "b" / "weights")
