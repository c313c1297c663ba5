"""Law: no worse than a margin is shown only where the whole interval lies above it; it is told on the page, in the terminal,
in the card and in report.json, and never silently left out."""

import json
from pathlib import Path

import pytest
from made_up_run import evaluate_role, make_run
from pydantic import ValidationError

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.schema import Recipe
from toolkit.report import show
from toolkit.report.margin import MarginFacts


@pytest.mark.parametrize(
    ("margin", "low", "shown"), [(2, -0.019, True), (2, -0.021, False), (2, -0.02, False), (0.5, 0.01, True)]
)
def test_the_whole_interval_has_to_lie_above_it(margin: float, low: float, shown: bool) -> None:
    assert MarginFacts.of(margin, (low, 0.03)).shown == shown


@pytest.mark.parametrize(("margin", "shown"), [(2, False), (60, True)])
def test_every_account_of_a_run_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], margin: float, shown: bool) -> None:
    run = make_run(tmp_path, evaluation={"margin": margin})
    report = write_report(run.path)
    assert report.margin is not None and report.margin.shown == shown
    show(report)
    said = capsys.readouterr().out, (run.path / "README.md").read_text()
    assert all(report.margin.verdict in text for text in said)
    told = json.loads((run.path / "report.json").read_text())["margin"]
    assert (told["points"], told["shown"]) == (margin, shown) and told["lowest"] == report.pairs[1].interval[0]
    assert f'<p class="verdict {"shown" if shown else "open"}">' in (run.path / "report.html").read_text()


def test_without_one_nothing_is_judged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert write_report(run.path).margin is None
    assert "margin" not in json.loads((run.path / "report.json").read_text())


def test_one_that_cannot_be_judged_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluation={"margin": 2})
    evaluate_role(run, "recovered", split="dev")
    report = read_run_facts(run.path)
    assert report.margin is None and any("evaluation.margin" in warning for warning in report.warnings)


@pytest.mark.parametrize("margin", [0, -2, 101, float("inf"), "two"])
def test_a_margin_is_a_loss_in_points(margin: object) -> None:
    with pytest.raises(ValidationError, match=r"evaluation\.margin"):
        Recipe.model_validate(
            {"name": "r", "model": "m", "task": "gsm8k", "pruning": {"keep": 2}, "evaluation": {"margin": margin}}
        )


def test_it_decides_no_models_result() -> None:
    recipes = [
        Recipe.model_validate({"name": "r", "model": "m", "task": "gsm8k", "pruning": {"keep": 2}, "evaluation": evaluation})
        for evaluation in ({}, {"margin": 2})
    ]
    assert recipes[0].evaluation.fingerprint_values() == recipes[1].evaluation.fingerprint_values()
