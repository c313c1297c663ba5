"""Law: what models wrote to be trained on is told in the report, the page and the model card; else none of them says a word."""

from pathlib import Path

import pytest
from made_up_run import make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report.card import card
from toolkit.report.page import render

COUNTS = {"texts": 4321, "malformed": 11, "repeated": 22, "overlapping": 33, "questions": 4255, "agreed": 3999}


def test_new_questions_are_told_with_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path())
    plain = read_run_facts(run.path)
    assert plain.training and "questions" not in plain.as_json()["training"]
    run.finish("answers", "answers", 1.0, drawn=17020, kept=3999, **COUNTS)
    facts = read_run_facts(run.path)
    assert facts.training and facts.as_json()["training"]["questions"] == COUNTS
    page, words = render(facts), "that the original wrote and answered"
    assert all(f"{number:,}" in page for number in COUNTS.values()) and "4,321" not in render(plain)
    assert words in card(facts, "recovered") and words not in card(plain, "recovered")


def test_own_answers_alone_are_no_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path())
    run.finish("answers", "answers", 1.0, drawn=40, kept=30)
    assert "questions" not in read_run_facts(run.path).as_json()["training"]
