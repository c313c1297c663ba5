"""The first screen of a run: every stage's line, in numbers, before any weights are read."""

from pathlib import Path

import pytest
from small_run import make_small, small_recipe

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.first_screen import first_screen
from toolkit.pipeline.runner import plan_stages
from toolkit.pipeline.stage_list import stages_of
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.pipeline.sweep_screen import sweep_screen
from toolkit.recipe.file import dump_recipe


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    trainer = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    return small_recipe(finetuning={"trainer": trainer}, evaluation__models=["original", "recovered"])


def screen(recipe, capsys: pytest.CaptureFixture[str], done: tuple[str, ...] = ()) -> list[str]:
    context = RunContext(recipe)
    planned = stages_of(context)
    first_screen(context, planned, {stage.name: "" if stage.name in done else "not done yet" for stage in planned})
    return capsys.readouterr().out.splitlines()


def line_of(stage: str, lines: list[str]) -> str:
    return next(line for line in lines if line.startswith(f"  {stage} "))


def test_the_first_screen_says_what_will_happen_with_arithmetic(small, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    lines = screen(small, capsys)
    assert lines[0] == "small"
    assert "8 → 4 in each of 2 blocks, 2 active per token, by weighted_ean" in line_of("experts", lines)
    assert "original (mixtral): " in line_of("model", lines) and "times smaller" in line_of("model", lines)
    assert line_of("machine", lines).endswith("2 ranks on CPU, float32 (auto: no GPU)")
    assert "torch " in line_of("versions", lines) and line_of("results", lines).endswith("runs/small")
    assert line_of("calibrate", lines).startswith("  calibrate           8 examples × about ")
    assert line_of("calibrate", lines).endswith("batches of 4 → 2, over 2 ranks 1 each")
    assert line_of("evaluate/original", lines).endswith(
        "6 questions, batches of 3 → 2, over 2 ranks 1 each; at most 4 new tokens each"
    )
    steps = "6 steps × 8 examples (2 × 2 accumulated × 2 ranks) = 48: 1.0 times the 48 there are; full, ZeRO 2"
    assert line_of("recover", lines).endswith(steps)
    assert not any(line.startswith("  evaluate/pruned") for line in lines)


def test_the_first_screen_has_a_line_for_each_kind_of_cut(small, capsys) -> None:
    steps = [{"width": 12}, {"keep": 6, "width": 8}, {"keep": 6, "width": 8, "layers": 1}]
    lines = screen(small_recipe(pruning={"schedule": steps, "layer_criterion": "top"}), capsys)
    assert "8 → 6 in each of 2 blocks" in line_of("experts", lines)
    assert line_of("width", lines).endswith("16 → 12 → 8 channels of every expert, by energy")
    assert line_of("layers", lines).endswith("2 → 1, by top")
    assert line_of("select", lines).split() == ["select", "keep", "6,", "width", "8,", "layers", "1"]
    assert "rounds/6-width8" in "\n".join(lines)
    (all_stay,) = (line for line in screen(small_recipe(pruning={"width": 8}), capsys) if line.startswith("  experts "))
    assert all_stay.endswith("all 8 stay in each of 2 blocks, 2 active per token")


def test_the_first_screen_says_what_is_skipped(small, capsys) -> None:
    lines = screen(small, capsys, done=("calibrate",))
    assert line_of("calibrate", lines).split() == ["calibrate", "done", "already"]
    assert line_of("select", lines).split() == ["select", "keep", "4"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pruning__schedule": [6, 4], "pruning__keep": 4},
        {"finetuning": {"teacher": "original", "data": [{"self_generated": True}]}, "control": True},
        {"calibration__data": [{"task": "playground/sorting"}, {"text": "notes.txt"}]},
    ],
)
def test_every_kind_of_stage_has_its_arithmetic(changes: dict, small, capsys) -> None:
    Path("notes.txt").write_text("A note.\n")
    if changes.get("finetuning"):
        asked = {"task": small.task.model_dump(), "self_generated": True}
        changes["finetuning"]["data"] = [asked, asked | {"questions": 5}]
    recipe = small_recipe(**changes, evaluation__models=["recovered"])
    lines = screen(recipe, capsys)
    for stage in plan_stages(recipe):
        assert len(line_of(stage.name, lines).split()) > 1, stage.name


def test_the_first_screen_says_how_long_the_stages_that_are_left_take(small, capsys) -> None:
    (whole,) = (line for line in screen(small, capsys) if line.startswith("  takes "))
    assert "of computing, " in whole and " of disk (" in whole
    every = tuple(stage.name for stage in stages_of(RunContext(small)) if stage.name != "select")
    (rest,) = (line for line in screen(small, capsys, done=every) if line.startswith("  takes "))
    assert "about 0.0 s of computing, 0.0 MiB of disk" in rest


def test_a_sweep_has_a_first_screen_with_its_cells_and_asks_the_dev_slice(small, capsys, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(dump_recipe(small))
    grid = load_grid("r.yaml", ["pruning.keep=6,4,2", "pruning.criterion=random,reap,ean", "seed=0,1"])
    sweep_screen(grid, RunContext(grid.recipe))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sweep of small" and line_of("results", lines).endswith("runs/small/sweep")
    assert "the original and 12 more: random, keep 6, seed 0; " in line_of("cells", lines)
    assert line_of("cells", lines).endswith("; and 6 more")
    assert "12 dev questions in each cell, batches of 3 → 4, at most 4 new tokens each" in line_of("measure", lines)
    assert "of computing, " in line_of("takes", lines)
