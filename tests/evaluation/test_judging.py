import json
from pathlib import Path

import pytest

from toolkit.evaluation import Answer, EvaluationFacts, Scores, judge
from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.errors import ItemsFailed
from toolkit.tasks import Scorer, Task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{i}", "a": f"#### {i}"}) + "\n" for i in range(4)))
    return Task(TaskRecipe(test=str(path), prompt="{q}", completion="{a}", scorer="numeric"))


ANSWERS = [Answer("#### 0", 3, True), Answer("So it is 1.", 5, True), Answer("#### 7", 3, True), Answer("", 4, False)]


def test_an_item_says_what_strict_and_flexible_extraction_make_of_the_answer(task: Task) -> None:
    items = judge(task, task.examples("test"), ANSWERS)
    assert [(item.correct, item.flexible) for item in items] == [(True, True), (False, True), (False, False), (False, False)]
    assert [(item.index, item.prompt, item.gold) for item in items] == [(i, f"q{i}", f"#### {i}") for i in range(4)]
    assert [(item.prediction, item.tokens, item.ended, item.written) for item in items] == [tuple(answer) for answer in ANSWERS]
    scores = Scores(items)
    assert (scores.score, scores.flexible_score, scores.flexible_correct) == (0.25, 0.5, 2)


def test_an_item_that_cannot_be_judged_is_named_and_the_others_are_judged(task: Task, tmp_path: Path) -> None:
    def breaks(prediction: str, gold: str) -> bool:
        if gold == "#### 2" and prediction != gold:
            raise ZeroDivisionError("division by zero")
        return prediction == gold

    task.scorer = Scorer(breaks, breaks)
    items = judge(task, task.examples("test"), ANSWERS)
    assert [item.correct for item in items] == [True, False, False, False]
    scores = Scores(items, EvaluationFacts(task="custom"))
    with pytest.raises(ItemsFailed) as caught:
        scores.check()
    assert caught.value.items == [2]
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "The scorer of task custom could not judge 1 of 4 answers: item 2 (test.jsonl, line 3): ZeroDivisionError: division by "
        "zero. The others are judged; mend the scorer, and the same command goes on."
    )
    scores.save(tmp_path / "evaluation", "pruned")
    summary = json.loads((tmp_path / "evaluation" / "pruned.json").read_text())
    assert (summary["failed"], summary["correct"], summary["n"]) == (1, 1, 4)
    lines = (tmp_path / "evaluation" / "pruned.predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"] is None for line in lines] == [True, True, False, True]


def test_where_all_is_judged_there_is_nothing_to_raise(task: Task) -> None:
    Scores(judge(task, task.examples("test"), ANSWERS)).check()
