from pathlib import Path

import pytest
from small_run import make_small, small_recipe

from toolkit.cli import screens
from toolkit.cli.screens import last_screen
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.first_screen import first_screen
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages
from toolkit.pipeline.stage_list import stages_of


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
        changes["finetuning"]["data"] = [{"task": small.task.model_dump(), "self_generated": True}]
    recipe = small_recipe(**changes, evaluation__models=["recovered"])
    lines = screen(recipe, capsys)
    for stage in plan_stages(recipe):
        assert len(line_of(stage.name, lines).split()) > 1, stage.name


def test_the_last_screen_says_what_there_is_and_what_to_do_next(small, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(screens, "program_path", lambda name: name)
    run = RunDirectory("small")
    run.pruned.mkdir(parents=True)
    (run.pruned / "model.safetensors").write_bytes(b"0" * 2**20)
    last_screen(run, 84, "pollard run small.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "", "Done in 1 min 24 s", "  runs/small/pruned  the pruned model, 1.0 MiB", "Next",
        "  pollard run small.yaml   the stages that are left",
        "  pollard chat runs/small  ask the original and the smaller model side by side",
    ]  # fmt: skip
