"""Laws of the study's script: tables hold what is finished and name what is not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import criteria_study
import criteria_tables

from toolkit.evaluation import Item, Scores
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import load_recipe


def test_every_cell_is_a_recipe_that_loads_under_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    swept, recovered = criteria_study.sweeps("study", [0, 1, 2]), criteria_study.recoveries("study", [0, 1, 2])
    names = [cell.run.name for cell in (*swept, *recovered)]
    assert len(set(names)) == len(names)
    for cell in swept:
        grid = load_grid(criteria_study.RECIPE, cell.arguments)
        assert {found.recipe.pruning.keep for found in grid.cells} == {6, 4, 3, 2}
        assert len(grid.recipe.calibration.data or ()) == (6 if cell.calibration == "all six tasks" else 0)
    for fine_tuned in recovered:
        recipe = load_recipe(criteria_study.RECIPE, fine_tuned.arguments)
        assert (recipe.pruning.criterion, recipe.pruning.keep, recipe.seed) == (
            fine_tuned.criterion,
            fine_tuned.keep,
            fine_tuned.seed,
        )
        assert recipe.evaluation.examples is None and recipe.evaluation.models == ["recovered"]


# The study is written before the criterion: without `reconstruction` it is the study of the others.
def test_it_works_without_reconstruction_and_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for criteria, recovered, swept in ((("random", "reap"), 4, 8), (("random", "reap", "reconstruction"), 6, 12)):
        monkeypatch.setattr(criteria_study, "CRITERIA", criteria)
        assert len(criteria_study.recoveries("study", [0])) == recovered
        assert len(criteria_study.sweeps("study", [0])) == swept


def finished(folder: Path, criterion: str, right: str) -> Any:
    """A fine-tuned cell whose evaluation is done; `right` has a 1 for every question answered rightly."""
    run = RunDirectory(f"r-{criterion}", folder)
    run.path.mkdir()
    items = [Item(i, "?", "yes", "yes", mark == "1", 5, ended=True) for i, mark in enumerate(right)]
    Scores(items).save(run.evaluation, "recovered")
    run.finish("evaluate/recovered", "f", 1.0)
    return criteria_tables.Recovered(criterion, 4, 0, run.path, [])


def test_tables_hold_what_is_finished_name_what_is_not_and_leave_the_text(tmp_path: Path) -> None:
    document = tmp_path / "study.md"
    document.write_text(f"# Words\n\n{criteria_tables.BEGIN}\nold\n{criteria_tables.END}\n\nMore words.\n")
    absent = criteria_tables.Recovered("frequency", 4, 0, tmp_path / "absent", [])
    cells = [finished(tmp_path, "random", "0000000011"), finished(tmp_path, "reap", "1111111110"), absent]
    sweep = criteria_tables.Swept("arithmetic", "its own task", "all", tmp_path / "swept", [])
    assert criteria_tables.write_tables(document, [sweep], cells) == ["swept", "absent"]
    text = document.read_text()
    assert text.startswith("# Words\n") and text.endswith("\n\nMore words.\n") and "old" not in text
    assert "| 4 | `random` | 20.0 % (5.7–51.0 %) | 20.0 % |" in text
    assert "| 4 | `random` | `reap` | 1 / 8, p = 0.039 |" in text
    assert "Not finished\n\n`swept`, `absent`." in text

    def row(keep: int, seed: int, score: float, label: str = "random") -> dict[str, Any]:
        task = {"score": score, "n": 10, "interval": [0.0, 0.5]}
        return {"label": label, "keep": keep, "seed": seed, "task": task}

    (sweep.run / "sweep").mkdir(parents=True)
    rows = [row(8, 0, 1.0, "original"), row(6, 0, 0.2), row(6, 1, 0.4), row(6, 0, 0.7, "reap"), row(4, 0, 0.1, "reap")]
    (sweep.run / "sweep" / "table.json").write_text(json.dumps({"rows": rows}))
    criteria_tables.write_tables(document, [sweep], cells)
    text = document.read_text()
    assert "10 dev questions; the original: 100.0 %" in text
    assert "| `random` | all | 30.0 % (20.0 % to 40.0 %) | – |" in text
    assert "| `reap` | all | 70.0 % (0.0–50.0 %) | 10.0 % (0.0–50.0 %) |" in text
    assert "Not finished\n\n`absent`." in text


def test_calibration_on_the_task_is_compared_with_the_mix_question_by_question(tmp_path: Path) -> None:
    cells = []
    for calibration, right in (("its own task", "1111111110"), ("all six tasks", "0000000011")):
        cell = criteria_tables.Swept("sorting", calibration, "all", tmp_path / calibration, [])
        (cell.run / "sweep").mkdir(parents=True)
        (cell.run / "sweep" / "keep4.json").write_text(json.dumps({"task": {"right": right}}))
        rows = [{"label": label, "keep": 4, "file": "keep4.json"} for label in ("original", "random", "reap")]
        (cell.run / "sweep" / "table.json").write_text(json.dumps({"rows": rows}))
        cells.append(cell)
    head, subject, table = criteria_tables.whose_data_tables(cells)
    assert subject == "sorting:" and "1 tests" in head
    assert table.splitlines()[2:] == ["| `reap` | all | 8 / 1, p = 0.039 |"]
    assert not criteria_tables.whose_data_tables(cells[:1])
