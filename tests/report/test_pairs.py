"""Law: any two models that answered the same questions are compared question by question, and no others."""

import pytest
from made_up_run import ROLES, evaluate_role, make_run

from toolkit.report import collect
from toolkit.report.pairs import compared, right_of
from toolkit.runtime.intervals import pair


def item(index: int, prompt: str, correct: bool, gold: str = "1") -> dict:
    return {"index": index, "prompt": prompt, "gold": gold, "correct": correct}


def test_every_two_models_of_a_run_are_compared_with_the_reference_second(tmp_path) -> None:
    # the made-up models answer the first 19, 9, 18 and 20 of 20 rightly
    pairs = collect(make_run(tmp_path, roles=(*ROLES, "control"), control=True).path)["pairs"]
    assert [(found["first"], found["second"]) for found in pairs] == [
        ("control", "original"), ("pruned", "original"), ("recovered", "original"), ("pruned", "control"),
        ("recovered", "control"), ("recovered", "pruned"),
    ]  # fmt: skip
    found = pairs[1]
    expected = pair(9, 0, 10, 1)
    assert [found[key] for key in ("both", "only_first", "only_second", "neither", "n")] == [9, 0, 10, 1, 20]
    assert (found["difference"], found["interval"], found["p"]) == (-0.5, list(expected.interval), expected.p)
    assert found["significant"] and not pairs[2]["significant"]


def test_other_questions_are_not_compared(tmp_path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", n=10)
    assert [(found["first"], found["second"]) for found in collect(run.path)["pairs"]] == [("pruned", "original")]


def test_questions_are_matched_by_text_and_gold_wherever_they_stand() -> None:
    first = right_of([item(0, "a", True), item(1, "b", False)])
    second = right_of([item(0, "b", False), item(1, "a", False)])
    assert compared(first, second)["only_first"] == 1


def test_a_question_that_is_put_twice_is_matched_in_order() -> None:
    first = right_of([item(1, "a", False), item(0, "a", True), item(2, "a", True, gold="2")])
    assert list(first.values()) == [True, False, True]
    assert compared(first, first)["both"] == 2


@pytest.mark.parametrize("damage", ["{", "[1"])
def test_a_damaged_file_is_named(tmp_path, damage: str) -> None:
    from toolkit.runtime.errors import PollardError

    run = make_run(tmp_path)
    (run.evaluation / "pruned.predictions.jsonl").write_text(damage)
    with pytest.raises(PollardError, match=r"pruned\.predictions\.jsonl is damaged"):
        collect(run.path)
