"""The named tasks, on rows of the form in which their data are published."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, raises

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task
from toolkit.tasks.presets import with_worked_solution, without_annotations

SAMPLES = ROOT / "tests" / "samples"


@pytest.fixture
def task() -> Task:
    files = {split: str(SAMPLES / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
    return Task(TaskRecipe(name="gsm8k", **files))


def test_local_files_of_the_form_of_gsm8k_serve(task: Task) -> None:
    assert [len(task.examples(split)) for split in ("train", "dev", "test")] == [5, 1, 3]
    first = task.examples("test")[0]
    assert [message["role"] for message in first.messages] == ["user"]
    assert first.messages[0]["content"].startswith("A hen lays 5 eggs a week.")
    assert first.messages[0]["content"].endswith("\nThink step by step, then write #### and the number.")


def test_calculator_annotations_are_taken_out_and_nothing_else(task: Task) -> None:
    first = task.examples("test")[0]
    assert first.completion == "They lay 5*11 = 55 eggs a week.\nIn 2 weeks they lay 55*2 = 110 eggs.\n#### 110"
    assert not any("<<" in example.completion + example.gold for example in task.examples("train"))


def test_gold_answers_are_right_and_others_wrong(task: Task) -> None:
    for example in task.examples("train") + task.examples("dev") + task.examples("test"):
        assert task.score(example.completion, example.gold)
        assert not task.score(example.completion + "1", example.gold)


@pytest.mark.parametrize("row", [{"question": "why?"}, {"question": "why?", "answer": 5}])
def test_a_row_of_another_form_than_gsm8k_is_left_to_the_templates(row: dict) -> None:
    assert without_annotations(row) == row


SVAMP_FILE = str(ROOT / "tests" / "samples" / "svamp_test.jsonl")


def test_local_files_of_the_form_of_svamp_serve() -> None:
    task = Task(TaskRecipe(name="svamp", test=SVAMP_FILE))
    first, second = task.examples("test")
    assert first.completion == "( 12 * 9 ) - 15 = 93\n#### 93" or first.completion == "( ( 12 * 9 ) - 15 ) = 93\n#### 93"
    assert second.completion == "7.5 / 3 = 2.5\n#### 2.5"
    assert first.messages[0]["content"].startswith("A hall has 12 rows with 9 chairs each. 15 chairs are broken How many")
    assert task.score("#### 2.50", second.gold) and not task.score("#### 25", second.gold)


def test_a_row_of_another_form_than_svamp_is_left_to_the_templates() -> None:
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
    with raises("data.no-field", "line 1", "`work`"):
        Task(TaskRecipe(name="svamp", train=str(path), test=str(path))).examples("test")


MATH_FILE = str(ROOT / "tests" / "samples" / "math_test.jsonl")


@pytest.mark.parametrize("answer", [None, "{answer}"])
def test_local_files_of_the_published_form_serve_and_their_own_solutions_are_right(answer: str | None) -> None:
    task = Task(TaskRecipe(name="math", test=MATH_FILE, answer=answer))
    examples = task.examples("test")
    assert len(examples) == 3
    assert examples[0].messages[0]["content"].endswith("then put the final answer in \\boxed{}.")
    assert all(verdict.strict for verdict in task.scorer.verdicts([(e.completion, e.gold) for e in examples]))
    golds = [example.gold for example in examples]
    others = task.scorer.verdicts(list(zip([e.completion for e in examples], golds[1:] + golds[:1], strict=True)))
    assert not any(verdict.flexible for verdict in others)
