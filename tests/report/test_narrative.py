"""Law: a sentence carries its numbers, and claims no more than they show."""

from pathlib import Path

import pytest
from made_up_run import ROLES, evaluate_role, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.runtime import formatting as formats


def test_the_headline_is_the_answer(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    assert report.headline == "Half the experts, 2.0× smaller: 95.0 % -> 90.0 % (difference not significant)."
    assert report.summary == (
        "2 of 4 experts kept in each of 2 blocks. On 20 test questions of playground/logic: "
        "original 95.0 %, pruned 45.0 %, recovered 90.0 %."
    )


def test_without_recovery_the_headline_is_the_pruned_models(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path, roles=("original", "pruned")).path)
    assert report.headline == ("Half the experts, 2.0× smaller: 95.0 % -> 45.0 % without fine-tuning (difference significant).")
    assert "recovered not evaluated" in report.summary


def test_a_loss_that_chance_explains_is_not_called_equality(tmp_path: Path) -> None:
    said = read_run_facts(make_run(tmp_path).path).comparisons[0]
    assert said.startswith(
        "Question by question, the recovered model alone is right on 0, the original alone on 1 of 20: −5.0 points (95 % "
    )
    assert (
        "difference not significant (McNemar p = 1.00). That does not prove them equally good: 20 questions cannot rule" in said
    )


def test_a_loss_that_chance_does_not_explain_is_called_significant(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for role in ROLES:
        evaluate_role(run, role, n=2000)
    said = read_run_facts(run.path).comparisons[0]
    assert "a significant difference (McNemar p < 0.001): more than the choice of questions explains." in said


def test_the_result_is_compared_with_the_control_too(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path, roles=(*ROLES, "control"), control=True).path)
    assert "recovered 90.0 %, control 100.0 %" in report.summary
    assert "the recovered model alone is right on 0, the control alone on 2 of 20: −10.0 points" in report.comparisons[1]


def test_models_on_different_splits_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", split="dev")
    report = read_run_facts(run.path)
    assert report.comparisons == () and report.headline.endswith("90.0 %.")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.points(-0.006), "−0.6"), (formats.points(0.0749), "+7.5"), (formats.points(-0.0004), "0.0"),
        (formats.p_value(0.4142), "p = 0.41"), (formats.p_value(0.0312), "p = 0.031"), (formats.p_value(1e-9), "p < 0.001"),
        (formats.p_value(0.0996), "p = 0.10"),
    ],
)  # fmt: skip
def test_differences_and_chances_are_written_with_the_digits_that_count(written: str, expected: str) -> None:
    assert written == expected
