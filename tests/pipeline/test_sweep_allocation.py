"""Laws of cells with a measured allocation: as large as the uniform cell beside them, and not worse on the loss that chose them.
They leave no trace in other cells, and nothing writes them."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, raises
from rank_launcher import RANKS, ranks
from small_run import small_folder, small_recipe, small_values

from toolkit.cuts import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.evaluation.probe import read_probe
from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline import allocation as module
from toolkit.pipeline.allocation import measure_allocation
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep import sweep
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.file import dump_values, load_recipe
from toolkit.tasks import DataCache

LISTS = ("pruning.keep=null,4", "pruning.width=null,8", "sweep.allocation=measured")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "sweep-allocation") as folder:
        values = small_values(pruning={"criterion": "reap", "tokens": "completion"}, task__dev_examples=6)
        (folder / "r.yaml").write_text(dump_values(values))
        yield folder


@pytest.fixture(scope="module")
def table(folder: Path) -> dict:
    return swept()


def swept(*overrides: str) -> dict:
    return sweep(load_grid("r.yaml", [*LISTS, *overrides])).as_json()


def file_of(row: dict, name: str = "small") -> dict:
    return json.loads(Path("runs", name, "sweep", row["file"]).read_text())


def test_every_cell_that_keeps_fewer_experts_has_one_beside_it(table: dict) -> None:
    found = [(row["label"], row["keep"], "allocation" in row) for row in table["rows"]]
    assert found == [
        ("original", 8, False), ("energy, width 8", 8, False), ("reap", 4, False), ("reap, measured allocation", 4, True),
        ("reap + energy, width 8", 4, False), ("reap + energy, width 8, measured allocation", 4, True),
    ]  # fmt: skip


@pytest.mark.parametrize("label", ["reap", "reap + energy, width 8"])
def test_it_is_as_large_as_the_uniform_one_and_not_worse_where_it_was_chosen(table: dict, label: str) -> None:
    uniform, measured = (next(r for r in table["rows"] if r["label"] == label + end) for end in ("", ", measured allocation"))
    assert uniform["parameters"] == measured["parameters"] and uniform["active_parameters"] == measured["active_parameters"]
    allocation, file = measured["allocation"], file_of(measured)
    assert sum(allocation["experts"]) == 2 * 4 and min(allocation["experts"]) >= 2 and allocation["active"] == [2, 2]
    assert measured["task"]["loss"] <= uniform["task"]["loss"] == allocation["uniform_loss"]
    right = [file["task"]["right"], file_of(uniform)["task"]["right"]]
    won, lost = (sum(a > b for a, b in zip(x, y, strict=True)) for x, y in (right, right[::-1]))
    assert allocation["difference"] == pytest.approx((won - lost) / 6)
    assert allocation["interval"][0] <= allocation["difference"] <= allocation["interval"][1] and 0 < allocation["p"] <= 1
    assert "one number for all layers" in measured["not_written"] and "not_written" not in uniform


def test_what_cannot_be_written_is_not_recommended_and_its_difference_is_told(table: dict) -> None:
    text = table["recommendation"]
    assert "allocation with 4 experts on average" in text and "chosen by the loss on these very questions" in text
    assert text.count("for no stock reader loads them") == 1  # said once, for all of them


def test_other_cells_are_those_of_a_sweep_without_it(table: dict) -> None:
    plain = sweep(load_grid("r.yaml", LISTS[:-1])).as_json()
    assert plain["rows"] == [row for row in table["rows"] if "allocation" not in row]
    assert "allocation" not in Path("runs/small/recipe.yaml").read_text()


def test_killed_in_the_search_it_goes_on_and_ends_as_if_undisturbed(table: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = module.completion_loss, []

    def killed(*arguments: object) -> object:
        asked.append(arguments)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "completion_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        swept("name=killed")
    assert swept("name=killed") == table
    searched = sum(row["allocation"]["measurements"] for row in table["rows"] if "allocation" in row)
    assert len(asked) == searched + 1  # nothing twice but what was killed
    asked.clear()
    assert swept() == table and not asked


def test_another_number_of_experts_goes_on_from_what_is_known(table: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = module.completion_loss, []

    def counted(*arguments: object) -> object:
        asked.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "completion_loss", counted)
    (row,) = [row for row in swept("pruning.keep=3", "pruning.width=null")["rows"] if "allocation" in row]
    assert 0 < len(asked) < row["allocation"]["measurements"] - 2 * 6  # the tables are there
    asked.clear()
    (same,) = [row for row in swept("name=alone", "pruning.keep=3", "pruning.width=null")["rows"] if "allocation" in row]
    assert same == row and len(asked) == row["allocation"]["measurements"]


def test_a_fit_is_told_the_same_of_a_loaded_model(table: dict) -> None:
    recipe, data, tokenizer = load_recipe("r.yaml", ["name=plan", "pruning.keep=4"]), DataCache(), load_tokenizer("original")
    directory, model = run(recipe, until="select"), load_model("original")
    probe = read_probe(DataRecipe(task=recipe.task), recipe, tokenizer, data)
    statistics, plan = ExpertStatistics.load(directory.statistics), Plan.load(directory.plan)
    record = measure_allocation(model, plan, statistics, probe, tokenizer, recipe)
    row = next(row for row in table["rows"] if row["label"] == "reap, measured allocation")
    assert list(record.experts.values()) == row["allocation"]["experts"] and list(record.experts) == list(plan.blocks)
    assert record.measured.loss == row["task"]["loss"] and record.uniform.loss == row["allocation"]["uniform_loss"]
    assert record.measured.right == file_of(row)["task"]["right"] and record.measurements == row["allocation"]["measurements"]
    assert (record.difference, record.p) == (row["allocation"]["difference"], row["allocation"]["p"])


def test_with_compression_it_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept("name=left", "pruning.width=null", "sweep.compression=null,2:4")["rows"]
    assert [row["label"] for row in rows[1:]] == ["2:4", "reap", "reap, 2:4", "reap, measured allocation"]
    assert "1 combination left out" in capsys.readouterr().out


def test_a_run_that_asks_for_it_is_refused_before_anything_is_done(folder: Path) -> None:
    with raises("allocation.not-written", "pollard sweep", "sweep.allocation=uniform"):
        run(small_recipe(name="never", sweep={"allocation": "measured"}))
    assert not Path("runs/never").exists()


def test_a_criterion_that_knows_one_size_is_refused_before_anything_starts(folder: Path) -> None:
    with raises("allocation.progressive", "pruning.mode=layerwise"):
        swept("name=odd", "pruning.criterion=reconstruction", "pruning.mode=progressive", "pruning.tokens=all")
    assert not Path("runs/odd").exists()


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(table: dict) -> None:
    command = ranks(RANKS, "--module", "toolkit.cli", "sweep", "r.yaml", *LISTS, "name=two")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    two = json.loads(Path("runs/two/sweep/table.json").read_text())
    for one, other in zip(table["rows"], two["rows"], strict=True):
        assert one["label"] == other["label"] and file_of(one)["kept"] == file_of(other, "two")["kept"]
        assert one["task"]["loss"] == pytest.approx(other["task"]["loss"], rel=1e-5)
