import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import PollardError
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task

MMLU = {"question": "Where is the Holmenkollen?", "choices": ["Rome", "Oslo", "Bonn"], "answer": 1}
ARC = {"question": "Where?", "choices": {"text": ["Rome", "Oslo", "Bonn"], "label": ["1", "2", "3"]}, "answerKey": "2"}


def task_of(folder: Path, row: dict[str, Any], **recipe: Any) -> Task:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return Task(TaskRecipe(name="multiple_choice", train=str(path), test=str(path), **recipe))


@pytest.mark.parametrize("row", [MMLU, MMLU | {"answer": "B"}, MMLU | {"answer": "Oslo"}, ARC, ARC | {"answerKey": "2"}])
def test_published_forms_become_lettered_questions(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = task_of(tmp_path, row).examples("test")
    assert example.messages[0]["content"] == f"{row['question']}\nA. Rome\nB. Oslo\nC. Bonn\nAnswer with the letter."
    assert (example.completion, example.gold) == ("B", "B")
    assert (example.choices, example.right, example.cloze) == (("Rome", "Oslo", "Bonn"), 1, row["question"])
    assert example.as_cloze().completion == "Oslo"


def test_another_column_and_templates_serve(tmp_path: Path) -> None:
    row = {"ctx": "He", "endings": ["sings.", "stone."], "label": 0}
    keys = {"choices": "endings", "prompt": "{ctx} …\n{options}", "cloze": "{ctx}", "completion": "{letter}. {choice}"}
    (example,) = task_of(tmp_path, row, **keys).examples("test")
    assert (example.completion, example.gold, example.cloze) == ("A. sings.", "A", "He")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (MMLU | {"choices": []}, "`choices` must be a list of at least two choices, not []."),
        (MMLU | {"choices": ["Rome"]}, "`choices` must be a list of at least two choices, not ['Rome']."),
        (MMLU | {"choices": "Rome"}, "`choices` must be a list of at least two choices, not 'Rome'."),
        (MMLU | {"choices": ["Rome", " ", "Bonn"]}, "choice 2 of `choices` is empty."),
        (MMLU | {"choices": ["x"] * 27}, "`choices` has 27 choices, more than there are letters."),
        (MMLU | {"answer": "D"}, "`answer` is 'D', and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": 3}, "`answer` is 3, and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": -1}, "`answer` is -1, and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": True}, "`answer` is True, and the choices are A, B, C (or 0 to 2)."),
        (ARC | {"answerKey": "4"}, "`answerKey` is '4', and the choices are 1, 2, 3 (or 0 to 2)."),
        (
            {"question": "?", "choices": ["a", "b"]},
            "no column says which choice is right: one of answer, answerKey, answer_key, … (task.label names it).",
        ),
    ],
)
def test_choices_that_are_none_are_told_with_the_line(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(PollardError) as caught:
        task_of(tmp_path, row).examples("test")
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(f"rows.jsonl, line 1: {told}")
