"""Keys of a task that a recipe says in vain, or wrongly."""

import pytest
from conftest import raises
from pydantic import ValidationError

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"scorer": "numerc"}, r"no scorer of that name\. Did you mean `numeric`\? Allowed: exact, numeric, math"),
        ({"scorer": "a-b:c"}, "no scorer of that name"),
        ({"scorer": "regex", "pattern": "(a"}, "no regular expression: missing \\)"),
        ({"scorer": "regex", "pattern": "abc"}, "put a group around the answer itself"),
        ({"pattern": "(a)"}, "pattern belongs to the scorer regex"),
        ({"labels": ["a", "b"]}, "labels belong to a classification"),
        ({"cloze": "{q}"}, "cloze is what choices are weighed behind"),
        ({"stop": ["x", ""]}, "an empty stop text would end every answer before it begins"),
        ({"shots": -1}, "greater than or equal to 0"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(keys: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TaskRecipe(**keys)


def test_the_scorer_regex_asks_for_its_pattern() -> None:
    with raises("task.key-missing", "task.pattern"):
        Task(TaskRecipe(prompt="{q}", completion="{a}", scorer="regex"))


def test_stop_texts_are_the_tasks() -> None:
    assert Task(TaskRecipe(name="gsm8k", stop=["Question:"])).stop == ["Question:"]
    assert Task(TaskRecipe(name="gsm8k")).stop == []
