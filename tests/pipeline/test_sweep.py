"""Laws of a sweep: a cell is what the pruned checkpoint would score; resumed is undisturbed; only the dev slice is asked."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, raises
from rank_launcher import RANKS, ranks
from small_run import TASK, make_small, small_values

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.pipeline import sweep
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import dump_values
from toolkit.runtime import distributed
from toolkit.runtime.errors import PollardError
from toolkit.selection import CRITERIA
from toolkit.tasks import Task

LISTS = ("pruning.keep=5,4", "pruning.criterion=random,reap", "seed=0,1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sweep")
    make_small(folder)
    (folder / "notes.txt").write_text("The harbour was dug in 1803.\n\nThen it was filled.\n")
    (folder / "r.yaml").write_text(dump_values(small_values(sweep__off_task={"text": "notes.txt"}, evaluation__fidelity=5)))
    distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        swept()
        yield folder
    distributed.stop()


def swept(*overrides: str, **how: bool) -> dict:
    return sweep.sweep(load_grid("r.yaml", [*LISTS, *overrides]), **how).as_json()


def files(name: str = "small") -> dict[str, dict]:
    """The cells' files, without what a clock says."""
    found = {path.name: json.loads(path.read_text()) for path in Path("runs", name, "sweep").glob("keep*.json")}
    return {name: {k: v for k, v in cell.items() if k != "seconds"} for name, cell in found.items()}


def test_every_cell_has_a_row_and_a_file_and_the_original_comes_first(folder: Path) -> None:
    table = json.loads((folder / "runs" / "small" / "sweep" / "table.json").read_text())
    rows = [(row["label"], row["keep"], row["seed"]) for row in table["rows"]]
    drawn = [("random", keep, seed) for keep in (5, 4) for seed in (0, 1)]
    assert rows == [("original", 8, None), *drawn, ("reap", 5, 0), ("reap", 4, 0)]
    assert {row["file"] for row in table["rows"]} == set(files())
    assert (table["split"], table["n"], table["off_task"]) == ("dev", 12, "notes.txt")
    for row in table["rows"]:
        assert row["off_task"]["loss"] > 0 and "score" not in row["off_task"]


@pytest.mark.parametrize("criterion", ["random", "reap"])
def test_a_cell_scores_what_the_really_pruned_checkpoint_scores(folder: Path, criterion: str) -> None:
    table = swept()
    cell = next(row for row in table["rows"] if (row["label"], row["keep"], row["seed"]) == (criterion, 4, 0))
    values = small_values(name=f"really-{criterion}", pruning={"keep": 4, "criterion": criterion}, evaluation__split="dev")
    values["evaluation"]["fidelity"] = 5
    directory = run(type(load_grid("r.yaml", LISTS).recipe).model_validate(values))
    plan, scores = Plan.load(directory.plan), json.loads((directory.path / "evaluation/pruned.json").read_text())
    lines = (directory.evaluation / "pruned.predictions.jsonl").read_text().splitlines()
    assert files()[cell["file"]]["kept"] == plan.experts.kept
    assert files()[cell["file"]]["task"]["right"] == "".join(str(int(json.loads(line)["correct"])) for line in lines)
    assert all(cell["task"][key] == scores[key] for key in ("score", "correct", "n", "interval"))
    like = json.loads((directory.evaluation / "pruned.fidelity.json").read_text())
    assert cell["fidelity"] == pytest.approx({key: like[key] for key in cell["fidelity"]}, abs=1e-6)


def test_the_original_is_perfectly_like_itself_and_every_cell_less(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original, *cells = swept()["rows"]
    assert original["fidelity"]["kl"] == pytest.approx(0, abs=1e-6)
    assert original["fidelity"]["acceptance"] == pytest.approx(1, abs=1e-6)
    for cell in cells:
        assert cell["fidelity"]["kl"] > 1e-5 and cell["fidelity"]["acceptance"] < 1 and cell["fidelity"]["examples"] == 5
    out = capsys.readouterr().out
    assert "KL" in out and "acceptance: against the original, over" in out
    assert not (folder / "runs" / "small" / "sweep" / "original").exists()  # what it said served all cells


def test_without_fidelity_there_is_no_column(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = swept("name=without", "evaluation.fidelity=null", "pruning.criterion=reap")
    assert [row["fidelity"] for row in table["rows"]] == [None] * 3
    assert "acceptance" not in capsys.readouterr().out + Path("runs/without/report.html").read_text()


def test_finished_cells_are_never_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("runs/small/sweep").glob("keep*.json")}
    capsys.readouterr()
    swept("pruning.keep=5,4,3")
    out = capsys.readouterr().out
    assert "calibrate" not in out and "10 cells, 7 of them measured already" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_sweep_killed_on_the_way_ends_as_if_undisturbed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_probe, seen = sweep.measure_probe, []

    def killed(*arguments: object) -> dict:
        seen.append(arguments)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return measure_probe(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "measure_probe", killed)
    with pytest.raises(KeyboardInterrupt):
        swept("name=killed")
    assert 0 < len(files("killed")) < 7 and not Path("runs/killed/sweep/table.json").exists()
    monkeypatch.setattr(sweep, "measure_probe", measure_probe)
    table = swept("name=killed")
    swept("name=undisturbed")
    assert files("killed") == files("undisturbed")
    assert table == json.loads(Path("runs/undisturbed/sweep/table.json").read_text())


def test_the_test_set_is_never_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, examples = set(), Task.examples

    def noting(task: Task, split: str) -> list:
        asked.add(split)
        return examples(task, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Task, "examples", noting)
    swept("name=asked", "evaluation.split=test")
    assert asked == {"train", "dev"}


def test_the_stages_of_a_run_stay_and_its_statistics_serve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_grid("r.yaml", [*LISTS, "name=there"]).recipe
    directory = run(recipe)
    before = directory.read_manifest()["stages"]
    capsys.readouterr()
    swept("name=there", "pruning.keep=3,2")
    assert "calibrate" not in capsys.readouterr().out
    after = directory.read_manifest()["stages"]
    assert {name: entry for name, entry in after.items() if name != "sweep"} == before
    swept("name=there", "calibration.examples=9")  # other statistics are kept beside the run's own
    assert directory.read_manifest()["stages"]["calibrate"] == before["calibrate"]
    assert len(list(directory.sweep.glob("calibration/*/calibration/statistics.json"))) == 1


def test_all_experts_are_the_original_and_one_choice_is_measured_once(folder: Path) -> None:
    table = swept("name=all", "pruning.keep=8,0.99,7")
    assert [row["label"] for row in table["rows"]] == ["original", "random", "random", "reap"]
    assert len(files("all")) == len({json.dumps(cell["kept"]) for cell in files("all").values()})


def test_a_damaged_cell_is_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(Path("runs/small/sweep").glob("keep4*.json"))
    before = path.read_text()
    path.write_text(before[:40])
    swept("pruning.keep=5,4")
    assert "7 cells, 6 of them measured already" in capsys.readouterr().out
    assert json.loads(path.read_text())["task"] == json.loads(before)["task"]


def test_fresh_measures_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(fresh=True)
    assert "7 cells, 0 of them measured already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pruning.keep=9,4"], "pruning.keep is 9, but the model has 8 experts per block"),
        (["sweep.off_task.text=nowhere.txt"], "Cannot read nowhere.txt"),
        (["model=nowhere"], "Cannot open the model nowhere"),
        (["task.train=nowhere.jsonl"], "Cannot read nowhere.jsonl"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_starts(
    folder: Path, overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PollardError, match=said.replace(".", r"\.")):
        swept("name=wrong", *overrides)
    assert not Path("runs/wrong").exists() and not capsys.readouterr().out


def test_a_criterion_that_the_statistics_cannot_serve_is_one_error_and_nothing_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unheard_of(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
        return statistics.get(block, "unheard_of", tokens)

    monkeypatch.setattr(CRITERIA["reap"], "score", unheard_of)
    with raises("statistics.missing", "`unheard_of`", "all tokens"):
        swept("name=unserved")
    assert not files("unserved")


def test_an_off_task_task_has_accuracy_too(folder: Path) -> None:
    other = json.dumps({"task": TASK, "examples": 5})
    table = swept("name=other", f"sweep.off_task={other}", "pruning.criterion=reap", "pruning.keep=4,3")
    assert [row["off_task"]["n"] for row in table["rows"]] == [5, 5, 5]
    assert all(row["off_task"]["score"] is not None for row in table["rows"])


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(folder: Path) -> None:
    command = ranks(RANKS, "--module", "toolkit.cli", "sweep", "r.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *LISTS, "name=two"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, two = files(), files("two")
    assert len(two) == 7 and two.keys() <= one.keys()  # other tests have added to the one rank's
    for name, cell in two.items():
        assert cell["ranks"] == 2 and cell["task"]["right"] == one[name]["task"]["right"]
        assert cell["task"]["loss"] == pytest.approx(one[name]["task"]["loss"], rel=1e-5)
        assert cell["fidelity"] == one[name]["fidelity"]
