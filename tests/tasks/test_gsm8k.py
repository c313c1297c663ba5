import pytest
from conftest import ROOT

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task
from toolkit.tasks.presets import without_annotations

SAMPLES = ROOT / "tests" / "samples"


@pytest.fixture
def task() -> Task:
    files = {split: str(SAMPLES / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
    return Task(TaskRecipe(name="gsm8k", **files))


def test_local_files_of_the_published_form_serve(task: Task) -> None:
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
def test_a_row_of_another_form_is_left_to_the_templates(row: dict) -> None:
    assert without_annotations(row) == row
