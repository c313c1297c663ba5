"""Law: a sentence carries its numbers, and claims no more than they show."""

from pathlib import Path

import pytest
from made_up_run import ROLES, evaluate_role, make_cuts, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report.narrative import headline
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


def test_every_cut_is_named_in_the_headline_and_counted_in_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    report = read_run_facts(run.path)
    assert report.headline.startswith("Half the experts, half as wide, 2 of 3 layers, 2.0× smaller: 95.0 % -> 90.0 %")
    assert report.summary.startswith(
        "2 of 4 experts kept in each of 2 blocks. Each expert keeps 4 of its 8 channels. 2 of 3 layers stay (0, 2). "
        "Active per token: 2.00 M -> 900.00 k parameters. On 20 test questions"
    )


@pytest.mark.parametrize(
    ("keep", "width", "layers", "expected"),
    [
        (8, (4, 8), None, "Experts half as wide"),
        (8, (3, 8), None, "3 of 8 channels per expert"),
        (8, None, (9, 12), "9 of 12 layers"),
        (2, (6, 8), None, "A quarter of the experts, three quarters as wide"),
        (6, (2, 8), (9, 12), "Three quarters of the experts, a quarter as wide, 9 of 12 layers"),
        (5, (4, None), None, "5 of 8 experts, 4 channels per expert"),
    ],
)
def test_what_stays_whole_is_left_out_of_the_headline(
    tmp_path: Path, keep: int, width: tuple | None, layers: tuple | None, expected: str
) -> None:
    run = make_run(tmp_path, until="select")
    make_cuts(run)
    report = read_run_facts(run.path)
    cuts = {
        "width": width and report.cuts.width.model_copy(update=dict(zip(("keep", "width"), width, strict=True))),
        "layers": layers and report.cuts.layers.model_copy(update={"kept": list(range(layers[0])), "layers": layers[1]}),
    }
    pruning = report.pruning.model_copy(update={"keep": keep, "experts": 8})
    changed = report.model_copy(update={"pruning": pruning, "cuts": report.cuts.model_copy(update=cuts)})
    assert headline(changed) == f"{expected}; no model has been evaluated."
