"""Laws of comparing drafts for a run: answers are written once, counts are those of assisted generation, and what cannot draft
says why."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import raises
from small_run import TASK, kill_in_call, small_folder, small_recipe

from toolkit.moe import load_model
from toolkit.pipeline import drafts, target_answers
from toolkit.pipeline.drafts import compare_drafts, plan_of
from toolkit.pipeline.run_models import find_run
from toolkit.pipeline.runner import run
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.report.draft_table import NO_SERVER, DraftsFacts, server_lines

SETTINGS = {"evaluation": {"batch_size": 3, "max_new_tokens": 8, "models": ["original"], "off_task": False}}
QUESTIONS = 10  # two files of answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that has pruned, and evaluated. What is measured is measured in no time."""
    with small_folder(tmp_path_factory, "drafts") as folder, pytest.MonkeyPatch.context() as patch:
        run(small_recipe(**SETTINGS))
        patch.setattr(drafts, "measure_costs", partial(drafts.measure_costs, repeats=1))
        patch.setattr(drafts, "compare_drafting", partial(drafts.compare_drafting, repeats=1))
        yield folder


@pytest.fixture(scope="module")
def found(folder: Path) -> DraftsFacts:
    return compare_drafts("runs/small", questions=QUESTIONS)


def write_recipe(name: str, recipe: Recipe) -> str:
    """A run of which nothing is there but its recipe."""
    Path("runs", name).mkdir(parents=True)
    Path("runs", name, "recipe.yaml").write_text(dump_recipe(recipe))
    return f"runs/{name}"


def test_every_kind_of_draft_is_told(found: DraftsFacts) -> None:
    assert {draft.kind for draft in found.drafts} == {"k1", "plan", "pruned", "blocks", "layers", "lookup"}
    assert found.left_out == {} and found.questions == QUESTIONS and found.agreement == 1
    for draft in found.drafts:
        assert [each.length for each in draft.lengths] == list(range(1, 9))
        assert all(each.passes + each.accepted == found.tokens for each in draft.lengths)
        assert (draft.more_bytes > 0) == (draft.kind == "pruned") and (draft.cost is None) == (draft.kind == "lookup")
    assert [each.kind for each in found.best_of_kinds] == sorted(
        {draft.kind for draft in found.drafts}, key=lambda kind: -max(d.best.predicted for d in found.drafts if d.kind == kind)
    )


def test_what_was_measured_is_what_was_replayed(found: DraftsFacts) -> None:
    measured = [draft.measured for draft in found.best_of_kinds]
    assert all(measured[:3]) and not any(measured[3:])
    assert all(each is None or (each.same and each.passes_as_replayed) for each in measured)


def test_a_plan_drafts_as_the_pruned_model_does(found: DraftsFacts) -> None:
    plan, pruned = (next(draft for draft in found.drafts if draft.kind == kind) for kind in ("plan", "pruned"))
    assert [each.passes for each in plan.lengths] == [each.passes for each in pruned.lengths]


def test_answers_are_written_once_and_again_for_another_model(
    folder: Path, found: DraftsFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(Path("runs/small/drafts/original").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) == 2 and len(lines) == QUESTIONS and lines[0].keys() == {"prompt", "tokens"}
    calls = kill_in_call(99, target_answers, monkeypatch)
    again = compare_drafts("runs/small", questions=QUESTIONS)
    assert not calls and [d.lengths[3].passes for d in again.drafts] == [d.lengths[3].passes for d in found.drafts]
    Path("original/config.json").write_text(Path("original/config.json").read_text() + "\n")
    compare_drafts("runs/small", questions=QUESTIONS)
    assert len(calls) == 2


def test_a_kill_loses_one_file_of_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = write_recipe("killed", small_recipe(**SETTINGS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_in_call(2, target_answers, patch)
        compare_drafts(where, questions=QUESTIONS)
    calls = kill_in_call(99, target_answers, monkeypatch)
    compare_drafts(where, questions=QUESTIONS)
    assert len(calls) == 1


def test_the_pruned_model_is_a_target_too(folder: Path) -> None:
    facts = compare_drafts("runs/small", "pruned", questions=3)
    assert {draft.kind for draft in facts.drafts} == {"k1", "blocks", "layers", "lookup"}
    assert facts.left_out.keys() == {"plan"} and facts.path == "runs/small/pruned"


def test_servers_are_told_the_best_length_and_others_why_not(found: DraftsFacts) -> None:
    lines = {(line.kind, line.server): line.command for line in server_lines(found)}
    best = {draft.kind: draft.best.length for draft in found.best_of_kinds}
    config = json.loads(lines["pruned", "vLLM"].split("'")[1])
    assert config == {"method": "draft_model", "model": "runs/small/pruned", "num_speculative_tokens": best["pruned"]}
    assert json.loads(lines["lookup", "vLLM"].split("'")[1])["num_speculative_tokens"] == best["lookup"]
    assert "-md pruned.gguf" in lines["pruned", "llama.cpp"]
    assert {kind for kind, server in lines if server == "no server"} == NO_SERVER.keys()


def test_a_run_without_a_plan_has_other_drafts_and_says_so(folder: Path) -> None:
    where = write_recipe("begun", small_recipe(**SETTINGS))
    facts = compare_drafts(where, questions=3)
    assert {"k1", "lookup"} <= {draft.kind for draft in facts.drafts}
    assert facts.left_out.keys() == {"plan", "model"} and "pollard select" in facts.left_out["plan"]
    with raises("drafts.no-plan", "there is no plan yet"):
        plan_of(find_run(where))
    with raises("run.no-model", "recovered"):
        compare_drafts(where, "recovered")


def test_answers_that_are_chosen_or_short_are_no_work_for_a_draft(folder: Path) -> None:
    one = write_recipe("one-token", small_recipe(evaluation__max_new_tokens=1))
    with raises("drafts.short-answers", "max_new_tokens is 1"):
        compare_drafts(one)
    labels = small_recipe(task=TASK | {"labels": ["yes", "no"], "scorer": "label", "completion": "yes"}, **SETTINGS)
    with raises("drafts.short-answers"):
        compare_drafts(write_recipe("labels", labels))


def test_a_second_model_that_finds_no_room_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = iter([2**40, 1])  # for the target; beside it
    monkeypatch.setattr(drafts, "free_memory", lambda _: next(room, 1))
    facts = compare_drafts("runs/small", questions=3)
    assert "pruned" not in {draft.kind for draft in facts.drafts} and "k1" in {draft.kind for draft in facts.drafts}
    assert "beside the target" in facts.left_out["pruned"]
    with raises("drafts.memory", "The target"):
        compare_drafts("runs/small", questions=3)


def test_a_run_at_work_is_left_alone(folder: Path) -> None:
    directory = find_run("runs/small").directory
    directory.lock()
    try:
        with raises("run.locked"):
            compare_drafts("runs/small", questions=3)
    finally:
        directory.unlock()


def test_a_family_that_cannot_take_back_tokens_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("original")
    model._is_stateful = True  # type: ignore[assignment]
    monkeypatch.setattr(drafts, "load_model", lambda *_: model)
    with raises("drafting.family"):
        compare_drafts("runs/small", questions=3)
