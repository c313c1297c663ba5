"""`pollard runs`: every state has its word, and cleaning takes nothing that cannot be made again or is not the product's."""

import sys
from pathlib import Path

import pytest
from made_up_run import make_run

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.pipeline.cleaning import AGAIN, COSTLY, removable
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import state_of
from toolkit.runtime.signed_folders import provenance, sign, write_own_file


@pytest.fixture
def pollard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", "runs", *arguments])
        capsys.readouterr()
        return cli.main(), capsys.readouterr().out

    return call


def made(name: str, until: str = "evaluate", **changes: object) -> RunDirectory:
    return make_run(Path("runs"), until=until, name=name, **changes)


def fill(run: RunDirectory, *names: str) -> None:
    for name in names:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("0" * 1000)


def files(run: RunDirectory) -> set[str]:
    return {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}


def line_of(name: str, out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(f"{name} "))


def test_every_run_is_listed_with_what_it_is_and_how_it_stands(pollard) -> None:
    whole = made("whole")
    whole.finish("report", "report", 1.0)
    stopped, moved, broken = made("stopped", until="prune"), made("moved"), made("broken")
    stopped.begin("recover")
    recipe = moved.recipe.read_text()
    moved.recovered.mkdir()
    moved.open("path/of/model", "playground/logic", recipe.replace("keep: 2", "keep: 3"), ["recover", "evaluate/recovered"])
    broken.manifest.write_text("{")
    Path("runs/photos").mkdir()
    status, out = pollard()
    assert status == 0
    for part in ("path/of/model", "playground/logic", " 2 ", "90.0 % recovered", "MiB", "complete"):
        assert part in line_of("whole", out)
    assert line_of("stopped", out).rstrip().endswith("stopped at recover")
    assert "45.0 % pruned" in line_of("moved", out) and line_of("moved", out).rstrip().endswith("parts stale")
    assert "moved: stale: recovered/, evaluation/recovered.json (made with pruning.keep=2)" in out
    assert line_of("broken", out).rstrip().endswith("damaged")
    assert "no runs, left as they are: runs/photos" in out


def test_a_state_is_what_the_manifest_and_the_lock_say(pollard) -> None:
    run = made("one", until="prune")
    run.open(
        "path/of/model", "playground/logic", run.recipe.read_text(), [], ["calibrate", "select", "prune", "recover", "report"]
    )
    assert state_of(run) == "done as far as prune"
    run.begin("recover")
    assert state_of(run) == "stopped at recover"
    run.lock()
    assert state_of(run) == "running: recover"
    run.unlock()
    run.fail("evaluate/pruned", "the scorer raised", [3])
    assert state_of(run) == "failed: evaluate/pruned"
    assert state_of(RunDirectory("none")) == "done as far as nothing"


def test_runs_are_named_by_folder_or_name_and_others_are_refused(pollard) -> None:
    assert "No runs here yet" in pollard()[1]
    made("one")
    made("two")
    make_run(Path("elsewhere"), name="three")
    for words, there in (
        ((), {"one", "two"}), (("one",), {"one"}), (("runs/two",), {"two"}), (("elsewhere",), {"three"}),
        (("runs", "elsewhere/three"), {"one", "two", "three"}),
    ):  # fmt: skip
        out = pollard(*words)[1]
        assert {
            name for name in ("one", "two", "three") if any(line.startswith(f"{name} ") for line in out.splitlines())
        } == there
    status, out = pollard("onne")
    assert status == 1 and "No run at onne. Did you mean `one`?" in out
    status, out = pollard("--yes")
    assert status == 1 and "belong to --clean" in out


OURS = (
    "teacher/about.json", "teacher/00000.safetensors", "answers/0/00001.jsonl", "fidelity/00000.safetensors",
    "checkpoints/recovered/checkpoint-4/global_step4/model.pt", "pruned.tmp/config.json", "pruned.tmp/model.safetensors",
    "evaluation/pruned.answers/0.jsonl", "sweep/original/00000.safetensors",
    "sweep/calibration/0123abcd/calibration/statistics.json", "sweep/calibration/0123abcd/manifest.json",
)  # fmt: skip
KEPT = (
    "recovered/model.safetensors", "control/model.safetensors", "adapter/adapter_model.safetensors", "sweep/table.json",
    "sweep/keep4-0123abcd.json", "training_log.jsonl", "report.html",
)  # fmt: skip
STRANGERS = (
    "teacher/notes.md",
    "answers/0/mine.csv",
    "checkpoints/mine/model.pt",
    "sweep/plot.png",
    "notes.txt",
    "pruned/q4.gguf",
)


def test_cleaning_shows_first_and_takes_only_what_is_the_products_and_can_be_made_again(pollard) -> None:
    run = made("one")
    before = files(run)
    fill(run, *OURS, *KEPT, *STRANGERS)
    status, out = pollard("--clean")
    assert status == 0 and "--yes removes it" in out and files(run) == {*before, *OURS, *KEPT, *STRANGERS}
    shown = [line.split()[0] for line in out.splitlines()[:-1]]
    assert shown == [f"runs/one/{part}" for part in ("checkpoints", "teacher", "answers", "fidelity", "unfinished", "sweep")]
    status, out = pollard("--clean", "--yes")
    assert status == 0 and files(run) == {*before, *KEPT, *STRANGERS, "lock"}
    assert "not Pollard's, left:" in out and "runs/one/teacher/notes.md" in out
    assert "Nothing to remove" in pollard("--clean")[1]


def test_parts_can_be_named_and_unknown_ones_are_refused(pollard) -> None:
    run = made("one")
    fill(run, *OURS)
    assert pollard("--clean", "--parts", "teacher,answers", "--yes")[0] == 0
    assert not run.teacher.exists() and not run.answers.exists() and run.fidelity.exists()
    status, out = pollard("--clean", "--parts", "teecher")
    assert status == 1 and "`teecher` is no part of a run. Did you mean `teacher`?" in out
    assert AGAIN.keys().isdisjoint(COSTLY)


# Without what was made of it, the pruned model is the run's result; and what nobody listed may be anybody's.
def test_the_pruned_model_goes_only_beside_what_was_trained_of_it_and_file_by_file(pollard) -> None:
    run = made("one")
    fill(run, "pruned/model.safetensors", "pruned/config.json")
    sign(run.pruned, provenance("pruned checkpoint", "path/of/model"))
    write_own_file(run.pruned, "README.md", "a card")
    (run.pruned / "config.json").write_text("edited since")
    fill(run, "pruned/added.json")
    assert not removable(run, ["pruned"])
    fill(run, "recovered/config.json")
    assert [path.name for found in removable(run, ["pruned"]) for path in found.files] == [
        "model.safetensors",
        "README.md",
        "pollard.json",
    ]
    run.open("path/of/model", "playground/logic", run.recipe.read_text(), ["recover"])
    assert not removable(run, ["pruned"])  # the recovered model is stale


def test_a_run_at_work_is_left_alone(pollard) -> None:
    run = made("one")
    fill(run, *OURS)
    run.lock()
    status, out = pollard("--clean", "--yes")
    run.unlock()
    assert status == 0 and "runs/one: running: starting, left as it is" in out and run.teacher.exists()


def test_links_are_not_followed(pollard, tmp_path: Path) -> None:
    run, outside = made("one"), tmp_path / "outside"
    outside.mkdir()
    (outside / "00000.safetensors").write_text("mine")
    run.teacher.symlink_to(outside)
    pollard("--clean", "--yes")
    assert (outside / "00000.safetensors").exists() and run.teacher.is_symlink()


def test_rounds_are_cleaned_alike_and_keep_what_they_trained(pollard) -> None:
    run = made("one")
    early = make_run(run.rounds, name="6")
    fill(early, "recovered/config.json", "recovered/model.safetensors", "pruned/model.safetensors", "teacher/00000.safetensors")
    sign(early.pruned, provenance("pruned checkpoint", "path/of/model"))
    pollard("--clean", "--yes")
    assert (early.recovered / "model.safetensors").exists() and not early.pruned.exists() and not early.teacher.exists()


def test_a_damaged_run_is_left_alone_and_the_others_are_cleaned(pollard) -> None:
    damaged, other = made("one"), made("two")
    fill(damaged, *OURS)
    fill(other, *OURS)
    damaged.manifest.write_text("{")
    status, out = pollard("--clean", "--yes")
    assert status == 0 and "runs/one: damaged, left as it is" in out
    assert damaged.teacher.exists() and not other.teacher.exists()
