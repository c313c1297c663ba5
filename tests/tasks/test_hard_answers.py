"""Answers as models write them, with the verdicts that a person gives: tests/samples/hard_answers.jsonl."""

import json

import pytest
from conftest import ROOT

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, Verdict

CASES = [json.loads(line) for line in (ROOT / "tests" / "samples" / "hard_answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['scorer']}: {case['why']}")
def test_a_hard_answer_is_judged_as_a_person_would(case: dict) -> None:
    keys = {key: case[key] for key in ("scorer", "pattern", "labels") if key in case}
    scorer = Task(TaskRecipe(prompt="{q}", completion="{a}", **keys)).scorer
    verdict = Verdict(scorer.strict(case["answer"], case["gold"]), scorer.verdicts([(case["answer"], case["gold"])])[0].flexible)
    assert verdict == (case["strict"], case["flexible"], None, None, None)
