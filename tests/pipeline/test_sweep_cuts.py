"""Laws of a sweep over widths and layers: a cell is what the pruned checkpoint scores; one calibration serves all widths."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_model
from small_run import small_folder, small_values

from toolkit.cuts import LayersCut, Plan, WidthCut
from toolkit.moe import load_model, sizes
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep import sweep
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import dump_values
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError

LISTS = ("pruning.keep=null,4", "pruning.width=null,0.5,12", "pruning.layers=null,[0,3]", "pruning.width_criterion=energy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "sweep-cuts") as folder:
        model = tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=4)
        model.save_pretrained(folder / "original")
        values = small_values(pruning={"criterion": "reap"}, task__dev_examples=6)
        (folder / "r.yaml").write_text(dump_values(values))
        yield folder


@pytest.fixture(scope="module")
def table(folder: Path) -> dict:
    return swept()


def swept(*overrides: str, **how: bool) -> dict:
    return sweep(load_grid("r.yaml", [*LISTS, *overrides]), **how).as_json()


def test_every_combination_is_a_row_of_its_own_and_the_original_is_the_first(table: dict) -> None:
    shapes = [(row["keep"], row["width"], row["layers"]) for row in table["rows"]]
    assert shapes[0] == (8, None, None) and table["rows"][0]["label"] == "original"
    assert sorted(map(str, shapes)) == sorted(
        map(str, [(keep, width, layers) for keep in (8, 4) for width in (None, 8, 12) for layers in (None, 2)])
    )
    assert len({row["file"] for row in table["rows"]}) == 12


def test_a_row_says_how_large_its_model_is(table: dict) -> None:
    row = next(row for row in table["rows"] if (row["keep"], row["width"], row["layers"]) == (4, 8, 2))
    values = small_values(pruning={"keep": 4, "width": 0.5, "layers": [0, 3], "criterion": "reap"}, evaluation__models=["pruned"])
    directory = run(Recipe.model_validate(values | {"name": "really"}), until="prune")
    found = sizes(load_model(str(directory.pruned)))
    assert (row["parameters"], row["active_parameters"]) == (found.parameters, found.active_parameters)
    assert row["parameters"] < table["rows"][0]["parameters"]


def test_a_cell_scores_what_the_really_pruned_checkpoint_scores(table: dict) -> None:
    cell = next(row for row in table["rows"] if (row["keep"], row["width"], row["layers"]) == (4, 8, 2))
    pruning = {"keep": 4, "width": 0.5, "layers": [0, 3], "criterion": "reap"}
    values = small_values(name="scored", pruning=pruning, evaluation__split="dev", evaluation__models=["pruned"])
    values["task"] = {**values["task"], "dev_examples": 6}
    directory = run(Recipe.model_validate(values))
    plan, scores = Plan.load(directory.plan), json.loads((directory.evaluation / "pruned.json").read_text())
    file = json.loads((Path("runs/small/sweep") / cell["file"]).read_text())
    assert file["kept"] == json.loads(json.dumps(plan.choice()))
    assert (file["width"], file["layers"]) == (plan.cut(WidthCut).keep, plan.cut(LayersCut).kept)
    assert all(cell["task"][key] == scores[key] for key in ("score", "correct", "n", "interval"))


def test_one_calibration_serves_all_widths_and_one_each_choice_of_layers(folder: Path, table: dict) -> None:
    other = list(Path("runs/small/sweep/calibration").iterdir())
    assert Path("runs/small/calibration/statistics.json").exists() and len(other) == 1
    assert json.loads((other[0] / "layers.json").read_text())["kept"] == [0, 3]
    assert (other[0] / "layers").resolve() == (folder / "runs/small/sweep/layers").resolve()


def test_finished_cells_are_never_measured_again(table: dict, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert swept() == table
    out = capsys.readouterr().out
    assert "calibrate" not in out and "12 cells, 12 of them measured already" in out
    swept("pruning.width=null,0.5,12,0.25")
    assert "16 cells, 12 of them measured already" in capsys.readouterr().out


def test_layers_drawn_with_other_seeds_are_other_cells(folder: Path) -> None:
    grid = load_grid("r.yaml", ["name=drawn", "pruning.layers=3", "pruning.layer_criterion=random,top", "seed=0,1,2"])
    rows = sweep(grid).as_json()["rows"]
    assert [(row["label"], row["seed"]) for row in rows[1:]] == [("random", 0), ("random", 1), ("random", 2), ("top", 0)]
    assert len({row["file"] for row in rows[1:4]}) > 1


def test_what_cannot_be_cut_is_said_of_all_cells_before_anything_starts(folder: Path) -> None:
    with pytest.raises(PollardError) as caught:
        sweep(load_grid("r.yaml", ["name=wrong", "pruning.width=17,8", "pruning.layers=[0,4],3"]))
    assert "pruning.width is 17" in str(caught.value) and "layer 4" in str(caught.value)
    assert not Path("runs/wrong").exists()
