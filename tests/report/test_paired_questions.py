"""Law: any two models that answered the same questions are compared question by question, and no others.

What changed is shown from both sides, with the count of all and a handful to read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import raises
from made_up_run import ROLES, evaluate_role, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.recipe.roles import Role
from toolkit.report.facts import ChangedAnswer, ChangedAnswers, RolePair
from toolkit.report.narrative import verdict
from toolkit.report.paired_questions import LONGEST, SHOWN, Answer, compare_paired, correctness, credit_differences
from toolkit.runtime.intervals import mean_interval, pair


def answer(index: int, prompt: str, correct: bool, gold: str = "1") -> Answer:
    return Answer(index=index, prompt=prompt, gold=gold, prediction="1", correct=correct)


def test_every_two_models_of_a_run_are_compared_with_the_reference_second(tmp_path: Path) -> None:
    # the made-up models answer the first 19, 9, 18 and 20 of 20 rightly
    pairs = read_run_facts(make_run(tmp_path, roles=(*ROLES, "control"), control=True).path).pairs
    assert [(found.first, found.second) for found in pairs] == [
        ("control", "original"), ("pruned", "original"), ("recovered", "original"), ("pruned", "control"),
        ("recovered", "control"), ("recovered", "pruned"),
    ]  # fmt: skip
    found = pairs[1]
    expected = pair(9, 0, 10, 1)
    assert (found.both, found.only_first, found.only_second, found.neither, found.n) == (9, 0, 10, 1, 20)
    assert (found.difference, found.interval, found.p) == (-0.5, expected.interval, expected.p)
    assert found.significant and not pairs[2].significant


def test_other_questions_are_not_compared_and_have_not_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", n=10)
    facts = read_run_facts(run.path)
    assert [(found.first, found.second) for found in facts.pairs] == [("pruned", "original")]
    assert facts.changed is None


def test_questions_are_matched_by_text_and_gold_wherever_they_stand() -> None:
    first = correctness([answer(0, "a", True), answer(1, "b", False)])
    second = correctness([answer(0, "b", False), answer(1, "a", False)])
    assert compare_paired(first, second).only_first == 1


def test_a_question_that_is_put_twice_is_matched_in_order() -> None:
    first = correctness([answer(1, "a", False), answer(0, "a", True), answer(2, "a", True, gold="2")])
    assert list(first.values()) == [True, False, True]
    assert compare_paired(first, first).both == 2


# A model whose degrees are all 0 and 1 has none in its file.
def test_degrees_are_compared_question_by_question() -> None:
    first = [answer(0, "a", True), replace(answer(1, "b", False), credit=0.75)]
    second = [replace(answer(1, "a", False), credit=0.5), replace(answer(0, "b", False), credit=0.5)]
    assert sorted(credit_differences(first, second)) == [0.25, 0.5]
    assert credit_differences([answer(0, "a", True)], [answer(0, "a", False)]) == []
    counts = compare_paired(correctness(first), correctness(second))
    found = RolePair.of(Role.RECOVERED, Role.ORIGINAL, counts, credit_differences(first, second))
    assert found.credit_difference == pytest.approx(0.375) and found.credit_interval == mean_interval([0.25, 0.5], -1, 1)
    assert "In mean credit: +37.5 points" in verdict(found, "one", "the other")
    plain = RolePair.of(Role.RECOVERED, Role.ORIGINAL, counts)
    assert "credit" not in str(plain.as_json()) and "credit" not in verdict(plain, "one", "the other")


@pytest.mark.parametrize("damage", ["{", "[1", "1", '{"index": 0}'])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path)
    path = run.evaluation / "pruned.predictions.jsonl"
    path.write_text(damage)
    with raises("report.damaged-predictions", path, "pruned.json"):
        read_run_facts(run.path)


def test_lost_and_won_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", right=6)  # the original: the first 19 of 20
    changed = read_run_facts(run.path).changed
    assert changed is not None
    assert (changed.model, changed.lost.count, changed.won) == (Role.RECOVERED, 13, ChangedAnswers(count=0, examples=[]))
    assert [example.index for example in changed.lost.examples] == list(range(6, 6 + SHOWN))
    assert changed.lost.examples[0] == ChangedAnswer(index=6, question="Is 6?", gold="yes", before="yes", after="no")


def test_without_recovery_it_is_the_pruned_model_that_changed(tmp_path: Path) -> None:
    changed = read_run_facts(make_run(tmp_path, roles=("original", "pruned")).path).changed
    assert changed is not None and (changed.model, changed.lost.count) == (Role.PRUNED, 10)


def test_an_endless_text_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=("original", "pruned"))
    path = run.evaluation / "pruned.predictions.jsonl"
    items = [json.loads(line) | {"prediction": "a" * 5_000 + "z"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    changed = read_run_facts(run.path).changed
    assert changed is not None
    after = changed.lost.examples[0].after
    assert after.startswith("aaa") and after.endswith("z") and len(after) < LONGEST + 10 and " […] " in after
