import json
from pathlib import Path

import pytest

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, fingerprint_of_path


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
    with pytest.raises(PollardError, match=rf"{told}\. Give the new run another name \(name=try-2\)\."):
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
    assert not run.is_done("calibrate", "f1")
    run.finish("calibrate", "f1", 1.0)
    assert run.is_done("calibrate", "f1")
    assert not run.is_done("calibrate", "f2") and not run.is_done("select", "f1")


def test_a_stage_to_be_done_is_stale_and_the_others_are_not(run: RunDirectory) -> None:
    run.finish("calibrate", "f1", 1.0)
    run.finish("select", "f2", 1.0)
    run.open("some/model", "gsm8k", "name: try\n", ["calibrate", "never done"])
    assert not run.is_done("calibrate", "f1") and run.is_done("select", "f2")
    assert run.why_stale("calibrate") and not run.why_stale("select")
    assert list(run.done()) == ["select"] and list(run.entries()) == ["calibrate", "select"]
    run.revive("calibrate")
    assert run.is_done("calibrate", "f1") and not run.why_stale("calibrate")


def test_what_is_stale_knows_with_which_settings_it_was_made(run: RunDirectory) -> None:
    def opened(keep: int, rate: float, todo: list[str]) -> str:
        trainer = f"finetuning: {{trainer: {{learning_rate: {rate}}}}}\nevaluation: {{models: [pruned]}}\n"
        run.open("some/model", "gsm8k", f"name: try\npruning: {{keep: {keep}}}\n{trainer}", todo)
        return run.why_stale("recover")

    opened(4, 0.1, [])
    run.finish("recover", "f1", 1.0)
    assert opened(4, 0.1, []) == ""
    assert opened(2, 0.1, ["recover"]) == "made with pruning.keep=4"
    assert opened(3, 0.1, ["recover"]) == "made with pruning.keep=4"
    assert opened(3, 0.2, ["recover"]) == "made with pruning.keep=4, finetuning.trainer.learning_rate=0.1"
    assert opened(4, 0.3, ["recover"]) == "made with finetuning.trainer.learning_rate=0.1"
    run.begin("recover")
    assert opened(4, 0.1, ["recover"]) == "made of what has changed since; it was begun again and has not finished"


def test_a_stage_that_was_begun_again_is_current_only_when_it_has_finished(run: RunDirectory) -> None:
    run.finish("recover", "f1", 1.0)
    run.begin("recover")
    assert not run.is_done("recover", "f1") and "has not finished" in run.why_stale("recover")
    run.open("some/model", "gsm8k", "name: try\n", ["recover"])
    assert run.entries()["recover"]["status"] == "unfinished"  # no later run takes it for whole
    run.finish("recover", "f1", 1.0)
    assert run.is_done("recover", "f1")


def test_the_manifest_tells_what_a_stage_did_and_with_what(run: RunDirectory) -> None:
    run.finish("calibrate", "f1", 12.345, examples=512, seed=3)
    stage = json.loads(run.manifest.read_text())["stages"]["calibrate"]
    assert {"status": "done", "seconds": 12.3, "examples": 512, "seed": 3}.items() <= stage.items()
    assert {"torch", "transformers", "trl", "deepspeed"} <= stage["versions"].keys()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "sta',
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"stages": {"prune": 3}}',
        b'{"stages": {"prune": {}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_explained_and_nothing_is_to_be_removed(run: RunDirectory, content: bytes) -> None:
    run.manifest.write_bytes(content)
    with pytest.raises(PollardError, match=r"manifest\.json is damaged \(.*Give the run another name \(name=try-2\)") as told:
        run.check_owner("some/model", "gsm8k")
    assert "emove" not in str(told.value)


def test_a_folder_with_somebody_elses_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "try"
    for name in ("recipe.yaml", "notes.txt", "recovered/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    with pytest.raises(PollardError, match=r"holds notes\.txt, recipe\.yaml, recovered/\..*another name \(name=try-2\)"):
        RunDirectory("try", tmp_path).check_owner("some/model", "gsm8k")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["model.safetensors", "notes.txt", "recipe.yaml"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PollardError, match="is a file: give the run another name"):
        RunDirectory("file", tmp_path).check_owner("some/model", "gsm8k")


def test_a_folder_that_a_run_has_barely_begun_is_its_own(tmp_path: Path) -> None:
    run = RunDirectory("try", tmp_path)
    run.check_owner("some/model", "gsm8k")  # it is not there yet
    run.lock()
    run.unlock()
    (run.path / "traceback.txt").write_text("")
    (run.path / "manifest.json.tmp").write_text("{")  # killed as it was written
    run.check_owner("some/model", "gsm8k")


def test_a_recipe_that_was_edited_by_hand_is_kept(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("recipe.edited.yaml", "recipe.edited2.yaml")):
        edited = f"# note {number}\n{run.recipe.read_text()}"
        run.recipe.write_text(edited)
        run.open("some/model", "gsm8k", f"name: try\nseed: {number}\n", [])
        assert run.recipe.read_text() == f"name: try\nseed: {number}\n" and (run.path / name).read_text() == edited
        assert f"was edited by hand: kept as {run.path / name}" in capsys.readouterr().out
    run.open("some/model", "gsm8k", "name: try\n", [])
    assert len(list(run.path.glob("recipe.*"))) == 3 and capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(PollardError, match=r"Cannot write into .*runs/try: "):
        RunDirectory("try", tmp_path / "runs").lock()


def test_leftovers_of_killed_stages_are_removed_but_for_a_pruning_that_goes_on(run: RunDirectory) -> None:
    whole = ("pruned.tmp/model-00001-of-00003.safetensors", "rounds/4/pruned.tmp/config.json", "teacher/00000.safetensors")
    half = (
        "pruned.tmp/model-00002-of-00003.safetensors.tmp", "recovered.tmp/config.json", "evaluation/original.json.tmp",
        "answers/1/00003.jsonl.tmp", "teacher/.tmpR0Zd23", "calibration/.tmpx",  # safetensors begins its own names so
    )  # fmt: skip
    strangers = ("notes.tmp", "evaluation/table.tmp", "teacher/draft.txt", ".tmp/mine.txt", "mine.tmp/config.json")
    for name in (*whole, *half, *strangers):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("")
    run.open("some/model", "gsm8k", "name: try\n", [])
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {*whole, *strangers, "manifest.json", "recipe.yaml"}


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


def test_beginning_anew_leaves_what_no_run_has_made(run: RunDirectory) -> None:
    ours = (
        "teacher/about.json", "teacher/00000.safetensors", "answers/1/00002.jsonl", "fidelity/00000.safetensors",
        "checkpoints/recovered/checkpoint-4/model.pt", "evaluation/pruned.answers/0.jsonl",
    )  # fmt: skip
    strangers = ("teacher/notes.md", "answers/mine.csv", "checkpoints/recovered/best/model.pt", "evaluation/pruned.answers/a.txt")
    for name in (*ours, *strangers):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("")
    run.forget(["checkpoints", "teacher", "answers", "fidelity"])
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {*strangers, "manifest.json", "recipe.yaml"}
    assert not (run.path / "fidelity").exists()


def test_a_run_at_work_is_seen_from_outside(run: RunDirectory) -> None:
    other = RunDirectory(run.path.name, run.path.parent)
    assert not other.is_locked()
    run.lock()
    assert other.is_locked()
    run.unlock()
    assert not other.is_locked()
