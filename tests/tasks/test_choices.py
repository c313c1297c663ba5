"""How data name the right one of several labels: by word or by number."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import raises
from pydantic import ValidationError

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task

LABELS = ["negative", "positive"]


def task_of(folder: Path, row: dict[str, Any], *more: dict[str, Any], **recipe: Any) -> Task:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (row, *more)))
    return Task(TaskRecipe(name="classification", train=str(path), test=str(path), **recipe))


@pytest.mark.parametrize("label", ["positive", 1])
def test_a_label_is_a_word_or_its_number(tmp_path: Path, label: str | int) -> None:
    (example,) = task_of(tmp_path, {"text": "Fine.", "label": label}, labels=LABELS).examples("test")
    assert example.messages[0]["content"] == "Fine.\nAnswer with one of: negative, positive."
    assert (example.completion, example.gold) == ("positive", "positive")


@pytest.mark.parametrize(
    ("values", "golds"),
    [
        (["Positive", " NEGATIVE "], ["positive", "negative"]),
        ([0, 1, 1], ["negative", "positive", "positive"]),
        ([0.0, 1.0], ["negative", "positive"]),
        (["0", "1", "1.0"], ["negative", "positive", "positive"]),
        ([1, 2, 2], ["negative", "positive", "positive"]),  # never 0, and both 1 and the last: from 1
        (["1", "2"], ["negative", "positive"]),
        ([1, 1], ["positive", "positive"]),
        (["positive", 0], ["positive", "negative"]),
    ],
)
def test_labels_in_every_usual_form_are_read(tmp_path: Path, values: list[Any], golds: list[str]) -> None:
    task = task_of(tmp_path, *({"text": f"t{n}", "label": value} for n, value in enumerate(values)), labels=LABELS)
    assert [example.gold for example in task.examples("test")] == golds


@pytest.mark.parametrize("values", [["1"], ["1", "1"], ["2", "1", "2"]])
def test_numbers_as_text_that_could_count_from_0_or_1_are_refused_with_the_key(tmp_path: Path, values: list[str]) -> None:
    rows, labels = [{"text": f"t{n}", "label": value} for n, value in enumerate(values)], [*LABELS, "neutral"]
    with raises("labels.ambiguous", "task.label_format: index_from_0"):
        task_of(tmp_path, *rows, labels=labels).examples("test")
    for first, form in enumerate(("index_from_0", "index_from_1")):
        task = task_of(tmp_path, *rows, labels=labels, label_format=form)
        assert [example.gold for example in task.examples("test")] == [labels[int(value) - first] for value in values]


@pytest.mark.parametrize(
    ("labels", "value", "gold"), [([False, True], True, "true"), ([1, 2, 3], 3.0, "3"), (["No", "Yes"], "yes", "Yes")]
)
def test_labels_of_a_recipe_may_be_numbers_and_truth_values(tmp_path: Path, labels: list[Any], value: Any, gold: str) -> None:
    (example,) = task_of(tmp_path, {"text": "x", "label": value}, labels=labels).examples("test")
    assert example.gold == gold


# Labels 1 and 2 beside numbers 0 and 1: 1 would be taken for itself, and 0 for the first.
def test_labels_that_are_numbers_are_never_counted_unless_it_is_said(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": 0}, {"text": "y", "label": 1}]
    with raises("labels.unknown", "line 1", "`label` is 0", "1, 2"):
        task_of(tmp_path, *rows, labels=["1", "2"]).examples("test")
    task = task_of(tmp_path, *rows, labels=["1", "2"], label_format="index_from_0")
    assert [example.gold for example in task.examples("test")] == ["1", "2"]


# A data set that names its classes says what their numbers mean, whatever the order in the recipe.
def test_the_names_of_a_data_sets_classes_win_over_their_numbers(tmp_path: Path) -> None:
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["Positive", "Negative"])})
    data = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=kinds)
    data.to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    task = Task(TaskRecipe(name="classification", train=path, test=path, labels=LABELS))
    assert [example.gold for example in task.examples("test")] == ["positive", "negative"]


def test_labels_that_are_numbers_mean_themselves(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"text": "Fine.", "label": 1}, labels=["2", "1", "10"])
    (example,) = task.examples("test")
    assert example.gold == "1" and not task.score("10", "1")


def test_another_column_serves(tmp_path: Path) -> None:
    row = {"review": "Fine.", "stars": "positive"}
    (example,) = task_of(tmp_path, row, labels=LABELS, label="stars", prompt="{review} {labels}?").examples("test")
    assert example.messages[0]["content"] == "Fine. negative, positive?" and example.gold == "positive"


@pytest.mark.parametrize(
    ("row", "code", "named"),
    [
        ({"text": "x", "label": "good"}, "labels.unknown", "`label` is 'good', and the labels are negative, positive."),
        ({"text": "x", "label": 2}, "labels.unknown", "`label` is 2, and the labels are negative, positive (or 0 to 1)."),
        ({"text": "x", "class": 1}, "data.no-field", "Fields there: text, class."),
    ],
)
def test_a_label_that_is_none_is_told_with_the_line(tmp_path: Path, row: dict[str, Any], code: str, named: str) -> None:
    with raises(code, "rows.jsonl, line 1: ", named):
        task_of(tmp_path, row, labels=LABELS).examples("test")


def test_without_labels_they_are_asked_for(tmp_path: Path) -> None:
    with raises("task.key-missing", "task.labels"):
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


# BoolQ: {"question": "…", "answer": true}
def test_truth_values_are_numbers_of_labels_where_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": value} for value in (False, True)]
    with raises("labels.unknown", "`label` is False", "no, yes", "task.label_format: index_from_0"):
        task_of(tmp_path, *rows, labels=["no", "yes"]).examples("test")
    declared = task_of(tmp_path, *rows, labels=["no", "yes"], label_format="index_from_0")
    assert [example.gold for example in declared.examples("test")] == ["no", "yes"]
    named = task_of(tmp_path, *rows, labels=[True, False])
    assert [example.gold for example in named.examples("test")] == ["false", "true"]
