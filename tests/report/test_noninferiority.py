"""Law: no worse than a margin is shown only where the whole interval lies above it; it is told on the page, in the terminal,
in the card and in report.json, and where it cannot be judged, a warning says so."""

import json
from pathlib import Path

import pytest
from made_up_run import evaluate_role, make_run
from pydantic import ValidationError

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report import show
from toolkit.report.facts import RolePair
from toolkit.report.noninferiority import NonInferiority
from toolkit.runtime.intervals import pair

VALUES = {"name": "r", "model": "m", "task": "gsm8k", "pruning": {"keep": 2}}


def judged(margin: float, low: float, high: float) -> str:
    found = RolePair.of(Role.RECOVERED, Role.ORIGINAL, pair(9, 0, 1, 0)).model_copy(update={"interval": (low, high)})
    return NonInferiority.of(found, margin).verdict


@pytest.mark.parametrize(
    ("margin", "low", "high", "verdict"),
    [
        (2, -0.019, 0.03, "shown"), (2, -0.021, 0.03, "not shown"), (2, -0.02, 0.03, "not shown"), (0.5, 0.01, 0.03, "shown"),
        (2, -0.05, -0.021, "worse"), (2, -0.05, -0.019, "not shown"),
    ],
)  # fmt: skip
def test_the_whole_interval_has_to_lie_above_it(margin: float, low: float, high: float, verdict: str) -> None:
    assert judged(margin, low, high) == verdict


@pytest.mark.parametrize(("margin", "verdict"), [(2, "not shown"), (60, "shown")])
def test_every_account_of_a_run_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], margin: float, verdict: str) -> None:
    run = make_run(tmp_path, evaluation={"margin": margin})
    report = write_report(run.path)
    assert report.noninferiority is not None and report.noninferiority.verdict == verdict
    show(report)
    lines = capsys.readouterr().out, (run.path / "README.md").read_text()
    assert all(report.noninferiority.sentence in text for text in lines)
    told = json.loads((run.path / "report.json").read_text())["noninferiority"]
    decisive = report.pair_of(Role.RECOVERED, Role.ORIGINAL)
    assert decisive is not None and told == {
        "first": "recovered", "second": "original", "margin": margin, "worst": decisive.interval[0], "verdict": verdict,
    }  # fmt: skip
    assert (
        f'<p class="verdict {verdict.replace(" ", "-")}">{report.noninferiority.claim}' in (run.path / "report.html").read_text()
    )


def test_without_one_nothing_is_judged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert write_report(run.path).noninferiority is None
    assert "noninferiority" not in json.loads((run.path / "report.json").read_text())


def test_one_that_cannot_be_judged_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluation={"margin": 2})
    evaluate_role(run, "recovered", split="dev")
    report = read_run_facts(run.path)
    assert report.noninferiority is None and any("evaluation.margin" in warning for warning in report.warnings)


@pytest.mark.parametrize("margin", [0, -2, 100, float("inf"), float("nan"), "two", True])
def test_a_margin_is_a_loss_in_points(margin: object) -> None:
    with pytest.raises(ValidationError, match=r"evaluation\.margin"):
        Recipe.model_validate(VALUES | {"evaluation": {"margin": margin}})


def test_it_decides_no_models_result() -> None:
    recipes = [Recipe.model_validate(VALUES | {"evaluation": evaluation}) for evaluation in ({}, {"margin": 2})]
    assert recipes[0].evaluation.fingerprint_values() == recipes[1].evaluation.fingerprint_values()
