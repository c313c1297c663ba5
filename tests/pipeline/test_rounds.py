"""One small run in rounds, with a control: what each round starts from, and what a second run does."""

import json
from collections.abc import Iterator

import pytest
from small_run import small_folder, small_recipe

from toolkit.cuts.plan import Plan
from toolkit.moe import load_config
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import run
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError

STAGES = [
    "rounds/6", "rounds/4", "calibrate", "select", "prune", "recover", "evaluate/recovered", "control", "evaluate/control",
    "report",
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A finished run of `scheduled()`, the working folder its own."""
    with small_folder(tmp_path_factory, "rounds"):
        yield run(scheduled())


def scheduled(schedule: tuple[int, ...] = (6, 4, 2), **changes: object) -> Recipe:
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_strategy": "no"}
    values: dict = {
        "finetuning": {"zero": 0, "examples": 8, "trainer": trainer}, "pruning": {"schedule": list(schedule)}, "control": True,
        "evaluation": {"models": ["recovered"], "examples": 2, "max_new_tokens": 2, "off_task": False},
    }  # fmt: skip
    return small_recipe(**(values | changes))


def redone(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The stages that were really done, those inside a round too."""
    capsys.readouterr()
    run(recipe)
    reasons = ("(not done yet)", "done again)")
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith(reasons)]


def test_every_round_prunes_what_the_one_before_recovered(directory: RunDirectory) -> None:
    assert list(directory.read_manifest()["stages"]) == STAGES
    folders = {6: directory.rounds / "6", 4: directory.rounds / "4", 2: directory.path}
    starts = {6: "original", 4: str(folders[6] / "recovered"), 2: str(folders[4] / "recovered")}
    experts = {6: 8, 4: 6, 2: 4}
    for keep, folder in folders.items():
        plan = Plan.load(folder / "plan.json")
        statistics = json.loads((folder / "calibration" / "statistics.json").read_text())
        assert statistics["model"] == plan.model == starts[keep]  # observed anew
        assert {block.experts for block in plan.blocks.values()} == {experts[keep]} and plan.keep == keep
        for checkpoint in ("pruned", "recovered"):
            assert load_config(str(folder / checkpoint)).num_local_experts == keep
    assert not (directory.path / "checkpoints").exists()  # nothing is left to go on with


def test_the_composed_plan_counts_in_the_originals_numbers(directory: RunDirectory) -> None:
    composed = Plan.load(directory.rounds / "plan.json")
    assert (composed.model, composed.keep) == ("original", 2)
    plans = [Plan.load(folder / "plan.json") for folder in (directory.rounds / "6", directory.rounds / "4", directory.path)]
    for name, block in composed.blocks.items():
        first, second, third = (plan.blocks[name].kept for plan in plans)
        assert block.experts == 8 and block.kept == [first[second[index]] for index in third]


def test_the_control_is_the_original_fine_tuned(directory: RunDirectory) -> None:
    assert load_config(str(directory.control)).num_local_experts == 8
    assert json.loads((directory.evaluation / "control.json").read_text())["model"] == str(directory.control)
    assert json.loads(directory.control_log.read_text().splitlines()[-1])["step"] == 1
    report = json.loads((directory.path / "report.json").read_text())
    assert report["models"]["control"]["n"] == 2 and report["pruning"]["experts"] == 8


def test_finished_rounds_are_skipped_and_a_control_depends_on_no_pruning(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert redone(scheduled(), capsys) == []
    assert redone(scheduled((6, 4, 3)), capsys) == ["select", "prune", "recover", "evaluate/recovered", "report"]
    # The first round calibrates as before; the second observes what the first has now recovered
    in_first, in_second = ["select", "prune", "recover"], ["calibrate", "select", "prune", "recover"]
    assert redone(scheduled(pruning={"schedule": [6, 4, 3], "criterion": "reap"}), capsys) == [
        "rounds/6", *in_first, "rounds/4", *in_second, *in_second, "evaluate/recovered", "report",
    ]  # fmt: skip


def test_a_round_that_cannot_be_is_told_before_the_first(directory: RunDirectory) -> None:
    with pytest.raises(PollardError, match=r"pruning\.keep is 9, but the model has 8 experts per block"):
        check(RunContext(scheduled((9, 4))))


def test_every_round_learns_from_the_original_which_is_asked_once(directory: RunDirectory) -> None:
    finetuning = scheduled().finetuning.model_dump() | {"teacher": "original"}
    taught = run(scheduled((6, 4), name="taught", finetuning=finetuning, control=False), until="recover")
    assert [*taught.read_manifest()["stages"]][:2] == ["teacher", "rounds/6"]
    early = RunDirectory("6", taught.rounds)
    assert "teacher" not in early.read_manifest()["stages"] and early.teacher.resolve() == taught.teacher.resolve()
    for each in (early, taught):
        assert '"divergence"' in each.training_log.read_text()
