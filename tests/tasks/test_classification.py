import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.errors import PollardError
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task

LABELS = ["negative", "positive"]


def task_of(folder: Path, row: dict[str, Any], **recipe: Any) -> Task:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return Task(TaskRecipe(name="classification", train=str(path), test=str(path), **recipe))


@pytest.mark.parametrize("label", ["positive", 1])
def test_a_label_is_a_word_or_its_number(tmp_path: Path, label: str | int) -> None:
    (example,) = task_of(tmp_path, {"text": "Fine.", "label": label}, labels=LABELS).examples("test")
    assert example.messages[0]["content"] == "Fine.\nAnswer with one of: negative, positive."
    assert (example.completion, example.gold) == ("positive", "positive")


def test_labels_that_are_numbers_mean_themselves(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"text": "Fine.", "label": 1}, labels=["2", "1", "10"])
    (example,) = task.examples("test")
    assert example.gold == "1" and not task.score("10", "1")


def test_another_column_serves(tmp_path: Path) -> None:
    row = {"review": "Fine.", "stars": "positive"}
    (example,) = task_of(tmp_path, row, labels=LABELS, label="stars", prompt="{review} {labels}?").examples("test")
    assert example.messages[0]["content"] == "Fine. negative, positive?" and example.gold == "positive"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "x", "label": "good"}, "`label` is 'good', and the labels are negative, positive."),
        ({"text": "x", "label": 2}, "`label` is 2, and the labels are negative, positive (or 0 to 1)."),
        ({"text": "x", "class": 1}, "no field `label` (task.label names it). Fields there: text, class."),
    ],
)
def test_a_label_that_is_none_is_told_with_the_line(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(PollardError) as caught:
        task_of(tmp_path, row, labels=LABELS).examples("test")
    assert f"rows.jsonl, line 1: {told}\n" in str(caught.value)


def test_without_labels_they_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"Scorer label needs `task\.labels`, e\.g\. labels: \[positive, negative\]\."):
        task_of(tmp_path, {"text": "x", "label": 0})


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["not spam", "not_spam"], "no two of them the same"),
        (["yes"], "give at least two labels"),
        (["yes", "Yes"], "no two of them the same"),
        (["yes", " "], "none empty"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TaskRecipe(name="classification", labels=labels)


@pytest.mark.parametrize(
    "labels", [["pos", "positive", "1", "10"], ["good", "good enough"], ["spam", "not spam"], ["C", "C++", "-1", "1"]]
)
def test_labels_inside_others_can_be_told_apart(labels: list[str]) -> None:
    assert TaskRecipe(name="classification", labels=labels).labels
