"""Laws of the recovery study: cells are recipes, what ends is kept and not repeated, tables compare seed by seed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import recovery_study
import recovery_tables
from recovery_study import Cell


def test_every_cell_is_a_recipe_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    groups = recovery_study.cells([0, 1, 2])
    everything = [cell for group in groups for cell in group]
    assert len({cell.name for cell in everything}) == len(everything)
    methods = {(c.method, c.teacher, c.keep, c.seed) for c in everything if c.kind == "method"}
    assert len(methods) == 4 * 2 * 2 * 3
    recipes = {cell: cell.recipe("study", []) for cell in everything}
    assert len({recipe.model_dump_json() for recipe in recipes.values()}) == len(everything)
    for cell, recipe in recipes.items():
        assert (recipe.pruning.keep, recipe.seed, recipe.finetuning.method) == (cell.keep, cell.seed, cell.method)
        assert bool(recipe.finetuning.teacher) == cell.teacher and recipe.finetuning.trainer["learning_rate"] == cell.rate
        assert recipe.evaluation.examples is None and recipe.evaluation.split == "test"
    controls = [(cell.seed, cell.teacher) for cell, recipe in recipes.items() if recipe.control]
    assert sorted(controls) == [(seed, teacher) for seed in (0, 1, 2) for teacher in (False, True)]
    schedules = [r.pruning.schedule for r in recipes.values() if r.pruning.schedule]
    assert [[step.keep for step in schedule] for schedule in schedules] == [[6, 4, 2]] * 3


def test_groups_that_run_at_once_share_no_directory() -> None:
    names = [{cell.arguments("study")[0] for cell in group} for group in recovery_study.cells([0, 1, 2])]
    assert all(len(own) == 1 for own in names) and len(set().union(*names)) == len(names)


def test_what_is_finished_is_not_repeated_and_a_changed_recipe_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("recipes", "data"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    launched: list[str] = []

    def launch(ranks: int, what: list[str], arguments: list[str], log: Path) -> bool:
        launched.append(log.stem)
        return "lora" not in log.stem

    monkeypatch.setattr(recovery_study, "launch", launch)
    monkeypatch.setattr(recovery_study, "measured", lambda cell, name, overrides: {"models": {}, "dev_accuracy": 1.0})
    cells = [Cell("method", "full", False, 4, 0, 1e-3), Cell("method", "lora", False, 4, 0, 1e-3)]
    failed = [recovery_study.do(cell, "study", []) for cell in cells]
    assert [cell.result("study") is None for cell in cells] == [False, True] == [failure is not None for failure in failed]
    for cell in cells:
        recovery_study.do(cell, "study", [])
    assert launched == [cells[0].name, cells[1].name, cells[1].name]
    recovery_study.do(cells[0], "study", ["calibration.examples=16"])
    assert launched[3:] == [cells[0].name]


def model(right: str) -> dict[str, Any]:
    return {"score": right.count("1") / len(right), "n": len(right), "interval": [0.2, 0.9], "right": right}


def test_tables_pair_each_seed_with_its_own_control_and_name_what_is_missing(tmp_path: Path) -> None:
    def cell(method: str, seed: int, teacher: bool = False, kind: str = "method", **rest: Any) -> Cell:
        return Cell(kind, method, teacher, 4, seed, 1e-3, **rest)

    def result(dev: float, **models: str) -> dict[str, Any]:
        return {"recipe": "", "dev_accuracy": dev, "models": {role: model(right) for role, right in models.items()}}

    found = [
        (cell("full", 0), result(0.8, original="1111", pruned="0000", recovered="1110", control="1111")),
        (cell("full", 1), result(0.8, pruned="0100", recovered="1100", control="1100")),
        (cell("lora", 0), result(0.9, recovered="0011")),
        (cell("lora", 1), None),
        (cell("lora", 0, kind="rate"), result(0.7)),
    ]
    document = tmp_path / "doc.md"
    assert recovery_tables.write_tables(document, found) == ["method-lora-keep4-seed1"]
    text = document.read_text()
    assert "the original: 100.0 %" in text and "Not finished\n\n`method-lora-keep4-seed1`." in text
    assert "| `full` | – | 80.0 % | 75.0 % (20.0–90.0 %) | 50.0 % (20.0–90.0 %) | 62.5 % | -37.50 (" in text
    assert "| none | – | – | 0.0 % (20.0–90.0 %) | 25.0 % (20.0–90.0 %) | 12.5 % | -87.50 (" in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1] for line in text.partition("### What")[0].splitlines()}
    assert rows["none"].startswith("-62.50 (") and rows["`full`"].startswith("-12.50 (")  # each seed with its own control
    assert "The dev slice chooses `lora`." in text and "| 0 | -50.00 (" in text
    assert "| `lora` | 4 | 0.001 | 70.0 % |" in text
    assert json.dumps(found[0][1])  # what a cell's file holds
