"""The scorers on the published test sets: POLLARD_DATA=folder with gsm8k/, svamp/ and math/, each with a test.jsonl."""

import os
from pathlib import Path

import pytest

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, math_scorer

DATA = os.environ.get("POLLARD_DATA", "")


# MATH's answer column was written apart from the solutions. Where the texts are equal, math-verify is asked all the same.
@pytest.mark.skipif(not DATA, reason="POLLARD_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "answer", "n", "most_wrong"), [("gsm8k", None, 1319, 0), ("svamp", None, 1000, 0), ("math", "{answer}", 500, 5)]
)
def test_gold_answers_are_right(name: str, answer: str | None, n: int, most_wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_scorer, "verdict_by_text", lambda prediction, gold: None)
    task = Task(TaskRecipe(name=name, test=str(Path(DATA) / name / "test.jsonl"), answer=answer))
    examples = task.examples("test")
    verdicts = task.scorer.verdicts([(example.completion, example.gold) for example in examples])
    assert len(examples) == n
    for reading in ("strict", "flexible"):
        assert sum(not getattr(verdict, reading) for verdict in verdicts) <= most_wrong
