"""Laws of compressed cells: each is what a model with such weights scores, is never written, and leaves no trace in others."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import raises, tiny_model
from small_run import small_folder, small_recipe, small_values

from toolkit.calibration import CalibrationSource
from toolkit.calibration.expert_inputs import expert_inputs
from toolkit.cuts import Plan, apply_plan
from toolkit.cuts.compression import LowRank, TwoOfFour, compressed, compression_of
from toolkit.evaluation.probe import measure_probe, read_probe
from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline import sweep as module
from toolkit.pipeline.calibration_data import read_sources
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep import sweep
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.file import dump_values, load_recipe
from toolkit.tasks import DataCache, padded_batches

LISTS = ("pruning.keep=null,4", "sweep.compression=null,low_rank:0.5,2:4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "sweep-compression") as folder:
        values = small_values(pruning={"criterion": "reap", "tokens": "completion"}, task__dev_examples=6)
        (folder / "r.yaml").write_text(dump_values(values))
        yield folder


@pytest.fixture(scope="module")
def table(folder: Path) -> dict:
    return swept()


def swept(*overrides: str) -> dict:
    return sweep(load_grid("r.yaml", [*LISTS, *overrides])).as_json()


def cell_of(table: dict, label: str) -> tuple[dict, dict]:
    """Its row and its file."""
    row = next(row for row in table["rows"] if row["label"] == label)
    return row, json.loads((Path("runs/small/sweep") / row["file"]).read_text())


def test_every_compression_is_a_row_beside_what_is_only_pruned(table: dict) -> None:
    assert [(row["label"], row["keep"]) for row in table["rows"]] == [
        ("original", 8), ("low_rank:0.5", 8), ("2:4", 8), ("reap", 4), ("reap, low_rank:0.5", 4), ("reap, 2:4", 4),
    ]  # fmt: skip
    assert len({row["file"] for row in table["rows"]}) == 6


@pytest.mark.parametrize("compression", [LowRank(0.5), TwoOfFour()], ids=str)
def test_a_cell_is_what_a_model_with_such_weights_scores(table: dict, compression: LowRank | TwoOfFour) -> None:
    """Really pruned, after its weights were really replaced."""
    _, file = cell_of(table, f"reap, {compression}")
    recipe, data, model = load_grid("r.yaml", LISTS).recipe, DataCache(), load_model("original")
    tokenizer = load_tokenizer("original")
    encoded = read_sources(recipe, tokenizer, data, model)[0].encoded
    batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id))
    low_rank = compression if isinstance(compression, LowRank) else None
    inputs = expert_inputs(model, [CalibrationSource("", batches)], low_rank)
    directory = run(load_recipe("r.yaml", ["name=plan", "pruning.keep=4"]), until="select")
    plan = Plan.load(directory.plan)
    assert file["kept"] == plan.experts.kept and file["compression"] == str(compression)
    pruned = load_model("original")
    with compressed(model, plan, compression, inputs):
        pruned.load_state_dict(model.state_dict())
    apply_plan(pruned, plan)
    task = read_probe(DataRecipe(task=recipe.task), recipe, tokenizer, data)
    found = measure_probe(pruned, tokenizer, recipe, task)
    assert file["task"]["loss"] == pytest.approx(found.loss, rel=1e-6)
    assert (file["task"]["right"], file["task"]["n"]) == (found.right, 6)
    with_all, _ = cell_of(table, "reap")
    assert abs(file["task"]["loss"] - with_all["task"]["loss"]) > 3e-5  # it does something


def test_rows_say_bytes_and_why_there_is_no_checkpoint(table: dict) -> None:
    original, *cells = table["rows"]
    assert original["bytes"] == 4 * original["parameters"] == 4 * sum(p.numel() for p in load_model("original").parameters())
    for row in cells:
        compression = row["label"].rpartition(", ")[2]
        known = compression in ("low_rank:0.5", "2:4")
        assert row.get("compression") == (compression if known else None)
        assert row.get("not_written") == (compression_of(compression).not_written if known else None)
        assert row["bytes"] == 4 * row["parameters"] + (
            row["keep"] * 2 * (32 * 32 + 32 * 16) // 2 // 4 if compression == "2:4" else 0
        )
    experts = 2 * 8 * (32 * 32 + 32 * 16)  # numbers of both blocks
    half, rank = cells[0], 2 * 8 * (8 * (32 + 32) + 5 * (32 + 16))
    assert half["parameters"] == original["parameters"] - experts + rank and rank <= experts / 2


def test_what_cannot_be_written_is_not_recommended(table: dict) -> None:
    advice, *reasons = table["recommendation"].split(f" {TwoOfFour.not_written}. {LowRank.not_written}.")
    assert len(reasons) == 1 and "low_rank" not in advice and "2:4" not in advice


def test_killed_between_cells_it_ends_as_if_undisturbed(table: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_probe, seen = module.measure_probe, []

    def killed(*arguments: object) -> object:
        seen.append(arguments)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return measure_probe(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "measure_probe", killed)
    with pytest.raises(KeyboardInterrupt):
        swept("name=killed")
    monkeypatch.setattr(module, "measure_probe", measure_probe)
    assert swept("name=killed") == table
    for path in Path("runs/small/sweep").glob("keep*.json"):
        one, other = (json.loads(file.read_text()) for file in (path, Path("runs/killed/sweep") / path.name))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_finished_cells_are_never_measured_again_nor_inputs_observed(table: dict, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert swept() == table
    out = capsys.readouterr().out
    assert "6 cells, 6 of them measured already" in out and "inputs are observed" not in out
    swept("sweep.compression=null,low_rank:0.25")
    assert "4 cells, 2 of them measured already" in capsys.readouterr().out


def test_on_another_calibration_it_is_another_cell(table: dict) -> None:
    one, _ = cell_of(table, "2:4")
    other = next(row for row in swept("calibration.examples=5")["rows"] if row["label"] == "2:4")
    assert other["file"] != one["file"] and other["task"]["loss"] != one["task"]["loss"]
    same = next(row for row in swept("pruning.tokens=prompt")["rows"] if row["label"] == "2:4")  # it looks at all of them
    assert same["file"] == one["file"]
    assert swept()["rows"] == table["rows"]


def test_with_other_cuts_it_is_left_out_with_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept("name=left", "pruning.width=null,8", "sweep.compression=null,2:4")["rows"]
    assert [row["label"] for row in rows[1:]] == ["2:4", "energy, width 8", "reap", "reap, 2:4", "reap + energy, width 8"]
    assert "2 combinations left out" in capsys.readouterr().out


@pytest.mark.parametrize("until", [None, "prune"])
def test_a_run_that_asks_for_it_is_refused_before_anything_is_done(folder: Path, until: str | None) -> None:
    with raises("compression.not-written", "low_rank:0.5", "sweep.compression=null"):
        run(small_recipe(name="never", sweep={"compression": "low_rank:0.5"}), until=until)
    assert not Path("runs/never").exists()


def test_what_a_model_cannot_have_is_said_before_anything_starts(folder: Path) -> None:
    tiny_model("mixtral", vocab_size=768, eos_token_id=1, intermediate_size=18).save_pretrained("odd")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "odd" / file).write_bytes((folder / "original" / file).read_bytes())
    with raises("compression.not-in-fours", "2:4", "18"):
        swept("name=odd", "model=odd")
    assert not Path("runs/odd").exists()


def test_the_sweeps_own_recipe_can_be_run(table: dict) -> None:
    assert "compression" not in Path("runs/small/recipe.yaml").read_text()
