"""A run that grows another one's model for a second task: what stays, what is trained, and what the first task has lost."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, raises
from grown_checkpoint import by_expert
from small_run import TASK, kill_in_call, make_small, small_folder, small_recipe

from toolkit.cuts import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.estimate.machine import resolve_machine
from toolkit.evaluation import generation
from toolkit.moe import load_config
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.runner import run
from toolkit.pipeline.stage_list import stages_of
from toolkit.recipe.schema import Recipe
from toolkit.report import card, render
from toolkit.runtime.intervals import pair

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no", "learning_rate": 1e-2}
FINETUNING = {"zero": 0, "examples": 8, "trainer": TRAINER}
EVALUATION = {"batch_size": 3, "max_new_tokens": 2}
ONTO = "runs/first/recovered"


def first(name: str = "first", **changes: object) -> Recipe:
    evaluation = EVALUATION | {"models": ["recovered"]}
    return small_recipe(**({"name": name, "finetuning": FINETUNING, "evaluation": evaluation} | changes))


def second(name: str = "second", onto: str = ONTO, keep: int = 6, method: str = "new", **changes: object) -> Recipe:
    values: dict = {
        "name": name,
        "task": TASK | {"train": "sorting_train.jsonl", "test": "sorting_test.jsonl"},
        "pruning": {"grow": {"onto": onto, "keep": keep}} | changes.pop("pruning", {}),  # type: ignore[operator]
        "finetuning": FINETUNING | {"method": method},
        "evaluation": EVALUATION | {"models": ["pruned", "recovered"]},
    }
    return small_recipe(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a finished first run."""
    with small_folder(tmp_path_factory, "grow") as folder:
        for split, lines in (("train", 60), ("test", 5)):
            text = (PLAYGROUND / "sorting" / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / f"sorting_{split}.jsonl").write_text("".join(text[:lines]))
        run(first())
        yield folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(second())


def check_of(recipe: Recipe) -> list[str]:
    return check(RunContext(recipe))


def test_the_best_others_join_the_first_runs_experts(finished: RunDirectory) -> None:
    held, plan = Plan.load("runs/first/plan.json"), Plan.load(finished.plan)
    statistics = ExpertStatistics.load(finished.statistics)
    for name, block in plan.blocks.items():
        scores = statistics.get(name, "gated_norm_sum", "all").tolist()
        others = sorted((e for e in range(8) if e not in held.experts.kept[name]), key=lambda e: -scores[e])
        assert block.kept == [*held.experts.kept[name], *sorted(others[:2])]
        assert block.origin == ["onto"] * 4 + ["model"] * 2 and plan.experts.onto == ONTO
    assert load_config(str(finished.recovered)).num_local_experts == 6


def test_after_training_every_old_tensor_and_row_is_the_first_runs(finished: RunDirectory) -> None:
    held, plan = Plan.load("runs/first/plan.json").experts.kept, Plan.load(finished.plan).experts.kept
    for block, layer in ((block, block.removesuffix("mlp")) for block in plan):
        before, pruned, after = (
            {key: tensor for key, tensor in by_expert(path, kept).items() if key[0].startswith(layer)}
            for path, kept in ((Path(ONTO), held[block]), (finished.pruned, plan[block]), (finished.recovered, plan[block]))
        )
        assert before and all(torch.equal(after[key], tensor) for key, tensor in before.items())
        assert all(torch.equal(pruned[key], tensor) for key, tensor in before.items())
        new = [key for key in after if key not in before]
        assert {expert for _, expert in new} == {*plan[block]} - {*held[block]}
        assert any(not torch.equal(after[key], pruned[key]) for key in new)


def test_what_the_first_task_lost_is_counted_and_paired(finished: RunDirectory) -> None:
    written = json.loads((finished.evaluation / "recovered.first_task.json").read_text())
    assert (written["onto"], written["split"]) == (ONTO, "test") and written["before"]["n"] == written["after"]["n"] == 6
    there = json.loads(Path("runs/first/evaluation/recovered.json").read_text())
    assert written["before"]["correct"] == there["correct"]
    marks = {key: written["pair"][key] for key in ("both", "only_first", "only_second", "neither")}
    assert sum(marks.values()) == 6 and pair(**marks).p == written["pair"]["p"]
    assert marks["both"] + marks["only_second"] == there["correct"]
    plan = Plan.load(finished.plan)
    assert written["choosing"].keys() == plan.blocks.keys()
    assert all(0 < count < written["tokens"] for count in written["choosing"].values())
    entry = finished.entries()["first_task/recovered"]
    assert (entry["before"], entry["after"], entry["n"]) == (written["before"]["score"], written["after"]["score"], 6)


def test_report_and_card_show_it(finished: RunDirectory) -> None:
    facts = read_run_facts(finished.path)
    assert facts.first_task and facts.first_task.sentence in facts.comparisons[-1] and ONTO in facts.summary
    page, text = render(facts), card(facts, "here")
    assert '<h2 id="first-task">The first task' in page and 'data-fact="first_task/pair/p"' in page
    assert facts.comparisons[-1].replace(ONTO, "first/recovered") in text and "`first/recovered`" in text
    assert facts.criteria and facts.criteria.mean["weighted_ean"] == 1 and facts.criteria.by_chance == 0.5


def test_a_second_run_does_nothing_and_a_card_beside_the_first_model_changes_nothing(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(ONTO) / "README.md").write_text("a card")
    capsys.readouterr()
    run(second())
    said = capsys.readouterr().out
    assert "first_task/recovered done already, skipped" in said and "done again" not in said
    (Path(ONTO) / "README.md").unlink()


def test_another_first_model_makes_it_again(finished: RunDirectory, tmp_path: Path) -> None:
    before = {stage.name: stage.fingerprint() for stage in stages_of(RunContext(second()))}
    shutil.copytree("runs/first", tmp_path / "first")
    changed = tmp_path / "first" / "recovered" / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    after = {
        stage.name: stage.fingerprint() for stage in stages_of(RunContext(second(onto=str(tmp_path / "first" / "recovered"))))
    }
    assert {name for name in before if before[name] == after[name]} == {"calibrate"}


def test_the_first_model_may_lie_in_the_home_folder(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    homely, plain = RunContext(second(onto=f"~/{ONTO}/")).first_run, RunContext(second()).first_run
    assert homely and plain and Path(homely.onto) == Path(ONTO).resolve() and homely.identity == plain.identity
    assert check_of(second(onto=f"~/{ONTO}/"))


def test_killed_while_the_first_task_is_asked_it_goes_on(
    finished: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, "runs/killed")
    killed = RunDirectory("killed")
    (killed.evaluation / "recovered.first_task.json").unlink()
    manifest = killed.read_manifest()
    del manifest["stages"]["first_task/recovered"]
    killed.manifest.write_text(json.dumps(manifest))
    with monkeypatch.context() as patch:
        kill_in_call(4, generation, patch)  # two batches of three by each model: in the second's last
        with pytest.raises(KeyboardInterrupt):
            run(second("killed"))
    capsys.readouterr()
    run(second("killed"))
    said = capsys.readouterr().out
    assert "6 of 6 answers are there already" in said and "3 of 6 answers are there already" in said
    ours, theirs = (run_.evaluation / "recovered.first_task.json" for run_ in (killed, finished))
    assert ours.read_text() == theirs.read_text()
    assert not list(killed.evaluation.glob("*.answers"))


def test_where_the_first_tasks_data_is_gone_that_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/first", "runs/gone")
    recipe = Path("runs/gone/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("test: test.jsonl", "test: nowhere.jsonl"))
    directory = run(second("data-gone", onto="runs/gone/recovered"))
    assert "not measured" in capsys.readouterr().out
    facts = read_run_facts(directory.path)
    assert facts.first_task and "nowhere.jsonl" in str(facts.first_task.missing) and not facts.first_task.pair
    assert any("nowhere.jsonl" in warning for warning in facts.warnings)
    assert "nowhere.jsonl" in render(facts)


def test_an_estimate_counts_both_models_answers(folder: Path) -> None:
    found = Estimator(resolve_machine(gpus=8, gpu="h100", cpu_memory="1T")).estimate(second("estimated"))
    stages = {stage.name: stage for stage in found.stages}
    first_task, of_this = stages["first_task/recovered"], stages["evaluate/recovered"]
    assert first_task.flops and of_this.flops and first_task.flops > of_this.flops


@pytest.mark.parametrize("method", ["full", "experts"])
def test_other_methods_are_allowed_and_said_to_change_what_was_there(folder: Path, method: str) -> None:
    notes = check_of(second("other", method=method))
    assert any(f"finetuning.method {method}" in note and ONTO in note for note in notes)
    assert not any("finetuning.method" in note for note in check_of(second("other")))


@pytest.mark.parametrize(
    ("onto", "code", "named"),
    [
        ("runs/first", "grow.no-checkpoint", ["runs/first", "Did you mean runs/first/recovered"]),
        ("runs/nothing/recovered", "grow.no-checkpoint", ["runs/nothing/recovered"]),
        ("original", "grow.no-plan", ["original", "plan.json"]),
    ],
)
def test_what_is_no_runs_checkpoint_is_refused(folder: Path, onto: str, code: str, named: list[str]) -> None:
    with raises(code, *named):
        _ = RunContext(second("wrong", onto=onto)).first_run


@pytest.mark.parametrize(("keep", "code", "named"), [(4, "grow.keep", [4, "5…8"]), (9, "grow.keep", [9, "5…8"])])
def test_numbers_that_do_not_grow_are_refused(folder: Path, keep: int, code: str, named: list[object]) -> None:
    with raises(code, *named):
        _ = RunContext(second("wrong", keep=keep)).budget


def test_another_original_is_refused(folder: Path, tmp_path: Path) -> None:
    make_small(tmp_path)
    changed = tmp_path / "original" / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    with raises("grow.other-model", ONTO, tmp_path / "original"):
        _ = RunContext(second("wrong", model=str(tmp_path / "original"))).first_run


def test_a_model_that_its_run_has_moved_on_from_is_refused(folder: Path) -> None:
    shutil.copytree("runs/first", "runs/moved")
    run(first("moved", pruning={"keep": 5}), until="select")
    with raises("grow.stale", "runs/moved/recovered", "pruning.keep=4"):
        _ = RunContext(second("wrong", onto="runs/moved/recovered")).first_run


def test_a_model_that_was_cut_otherwise_is_refused(folder: Path) -> None:
    run(first("narrow", pruning={"keep": 4, "width": 8, "width_multiple": 8}), until="prune")
    with raises("grow.other-cuts", "runs/narrow/pruned", "experts and width"):
        _ = RunContext(second("wrong", onto="runs/narrow/pruned")).first_run


def test_a_run_does_not_grow_itself(folder: Path) -> None:
    with raises("grow.own-run", ONTO, "name=first-"):
        check_of(second("first"))


def test_a_grown_model_grows_again(finished: RunDirectory) -> None:
    third = run(second("third", onto=str(finished.recovered), keep=8, method="new"), until="prune")
    plan, held = Plan.load(third.plan).experts, Plan.load(finished.plan).experts
    assert all(kept[:6] == held.kept[name] and sorted(kept) == list(range(8)) for name, kept in plan.kept.items())
    assert next(iter(plan.origin.values())) == ["onto"] * 6 + ["model"] * 2
