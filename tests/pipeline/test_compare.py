"""Law: `pollard compare` tells two models of any runs apart, or says why it cannot."""

import json
import sys
from pathlib import Path

import pytest
from conftest import raises
from made_up_run import evaluate_role, make_run

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.pipeline.compare import compare, find_evaluated
from toolkit.report.model_comparison import ComparedModel
from toolkit.runtime.intervals import wilson


def test_two_runs_are_compared_by_their_recovered_models(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, name="one"), make_run(tmp_path, name="other")
    evaluate_role(other, "recovered", right=6)
    facts = compare(str(one.path), str(other.path))
    pair = facts.pair
    assert pair.first == ComparedModel(name=str(one.recovered), score=0.9, correct=18, n=20, interval=wilson(18, 20))
    assert (pair.second.name, pair.only_first, pair.only_second, pair.both) == (str(other.recovered), 12, 0, 6)
    assert pair.difference == 0.6 and pair.significant


def test_a_margin_says_whether_the_first_is_no_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    models = str(run.recovered), str(run.path / "original")
    found = compare(*models, margin=30.0).noninferiority
    assert found is not None and (found.first, found.verdict) == (str(run.recovered), "shown")
    assert compare(*models).noninferiority is None and "noninferiority" not in compare(*models).as_json()
    monkeypatch.setattr(sys, "argv", ["pollard", "compare", *models, "--margin", "2"])
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    assert cli.main() == 0
    assert "No worse than 2 points: not shown" in capsys.readouterr().out
    for wrong in ("0", "100", "nan", "two"):
        monkeypatch.setattr(sys, "argv", ["pollard", "compare", *models, "--margin", wrong])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        assert f"percentage points between 0 and 100, not {wrong}" in capsys.readouterr().err


def test_a_model_of_a_run_is_named_like_its_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    facts = compare(str(run.path / "pruned"), f"{run.path}/original/")
    assert (facts.pair.only_first, facts.pair.only_second) == (0, 10)
    assert f"{run.path / 'original'} alone on 10 of 20: −50.0 points" in facts.verdict


def test_without_a_recovered_model_a_run_is_its_pruned_one(tmp_path: Path) -> None:
    assert find_evaluated(str(make_run(tmp_path, roles=("original", "pruned")).path)).name.endswith("/small/pruned")


def test_different_questions_are_refused_with_their_numbers(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, name="one"), make_run(tmp_path, name="other")
    evaluate_role(other, "recovered", n=12)
    with raises("compare.other-questions", f"{one.recovered} answered 20", f"{other.recovered} 12", "12 are the same"):
        compare(str(one.path), str(other.path))


@pytest.mark.parametrize(
    ("where", "code", "named"),
    [
        ("nowhere", "compare.no-run", "nowhere"),
        ("small/control", "compare.not-evaluated", "`control`. There is: original, pruned, recovered."),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, where: str, code: str, named: str) -> None:
    make_run(tmp_path)
    with raises(code, named):
        find_evaluated(str(tmp_path / where))


def test_a_run_that_evaluated_nothing_says_how(tmp_path: Path) -> None:
    run = make_run(tmp_path, until="prune")
    with raises("compare.nothing-evaluated", run.path, f"`pollard evaluate {run.recipe}`"):
        find_evaluated(str(run.path))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_verb_prints_a_table_or_json(tmp_path: Path, as_json: bool, monkeypatch, capsys) -> None:
    run = make_run(tmp_path)
    arguments = [str(run.recovered), str(run.path / "original"), *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", ["pollard", "compare", *arguments])
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    assert cli.main() == 0
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out) == compare(*arguments[:2]).as_json()
    else:
        assert "only the second       1" in out and "difference not significant (McNemar p = 1.00)" in out.replace("\n", " ")
