from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Task
from toolkit.tasks.presets import with_worked_solution

FILE = str(ROOT / "tests" / "samples" / "svamp_test.jsonl")


def test_local_files_of_the_published_form_serve() -> None:
    task = Task(TaskRecipe(name="svamp", test=FILE))
    first, second = task.examples("test")
    assert first.completion == "( 12 * 9 ) - 15 = 93\n#### 93" or first.completion == "( ( 12 * 9 ) - 15 ) = 93\n#### 93"
    assert second.completion == "7.5 / 3 = 2.5\n#### 2.5"
    assert first.messages[0]["content"].startswith("A hall has 12 rows with 9 chairs each. 15 chairs are broken How many")
    assert task.score("#### 2.50", second.gold) and not task.score("#### 25", second.gold)


def test_a_row_of_another_form_is_left_to_the_templates() -> None:
    assert with_worked_solution({"Question": "Why?"}) == {"Question": "Why?"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"Equation": "( 6 / 2 )", "Answer": 1e-05}, {"work": "6 / 2", "number": "0.00001"}),
        ({"Equation": "( 6.0 / 2.0 )", "Answer": "3.0"}, {"work": "6 / 2", "number": "3"}),
        ({"Equation": None, "Answer": float("nan")}, {}),
    ],
)
def test_values_become_text_as_people_write_them(row: dict[str, Any], said: dict[str, str]) -> None:
    assert {key: value for key, value in with_worked_solution(row).items() if key not in row} == said


def test_a_line_without_equation_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"Body": "x", "Question": "y", "Equation": null, "Answer": 3}\n')
    with pytest.raises(PollardError, match=r"line 1: no field `work`"):
        Task(TaskRecipe(name="svamp", train=str(path), test=str(path))).examples("test")
