"""A scorer of one's own in `toolkit.evaluate`: a function, and the judge behind a URL that docs/tasks.md shows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, raises
from serving import Reply, serving

import toolkit
from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.errors import ItemsFailed
from toolkit.runtime.intervals import mean_interval, wilson

BLOCK = re.compile(r"```python\n((?:(?!```).)*?def judge\(.*?)```", re.DOTALL)
MARKS = ["10", "Seven: 7", "0", "5"]


@pytest.fixture
def task(tmp_path: Path) -> toolkit.Task:
    rows = [{"question": f"What is {i} + {i}?", "answer": str(i + i)} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return toolkit.Task(TaskRecipe(test=str(tmp_path / "test.jsonl"), prompt="{question}", completion="{answer}"))


def evaluate(model: Any, tokenizer: Any, task: toolkit.Task, scorer: Any) -> toolkit.Scores:
    return toolkit.evaluate(model, tokenizer, task, max_new_tokens=4, batch_size=2, scorer=scorer)


def test_a_judge_behind_a_url_is_ten_lines(model: Any, tokenizer: Any, task: toolkit.Task) -> None:
    asked: list[str] = []

    def reply(path: str, body: dict[str, Any]) -> Reply:
        (message,) = body["messages"]
        asked.append(message["content"])
        return 200, json.dumps({"choices": [{"message": {"content": MARKS[max(len(asked) - 2, 0)]}}]}).encode()

    (block,) = BLOCK.findall((ROOT / "docs" / "tasks.md").read_text())
    code = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "URL"))]
    assert len(code) <= 10
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(block, names)
    with serving(reply) as url:
        names["URL"] = f"{url}/chat/completions"
        scores = evaluate(model, tokenizer, task, names["judge"])
    gold, *asked = asked  # one gold answer, to see that somebody answers
    assert "Answer: 0" in gold
    assert all(f"What is {i} + {i}?" in text and f"Reference: {i + i}" in text for i, text in enumerate(asked)) and asked[3:]
    assert [item.credit for item in scores.items] == [1.0, 0.7, 0.0, 0.5]
    assert scores.credit == pytest.approx(0.55) and scores.credit_interval == mean_interval([1.0, 0.7, 0.0, 0.5], 0, 1)
    assert (scores.correct, scores.flexible_correct, scores.interval) == (1, 3, wilson(1, 4))
    assert "55.0% mean credit (0.0–100.0 %)" in repr(scores)
    scores.check()


@pytest.mark.parametrize(
    ("returned", "words"), [(1.5, "1.5"), (float("nan"), "nan"), (-0.1, "-0.1"), (None, "None"), ("good", "'good'")]
)
def test_what_is_no_degree_is_told_with_its_line(
    model: Any, tokenizer: Any, task: toolkit.Task, returned: object, words: str, capsys: Any
) -> None:
    scores = evaluate(model, tokenizer, task, lambda prediction, gold: returned if gold == "4" != prediction else True)
    with pytest.raises(ItemsFailed, match=re.escape("item 2 (") + r".*test\.jsonl, line 3\).*" + re.escape(words)):
        scores.check()
    assert [item.correct for item in scores.items] == [True, True, False, True] and "1 not judged" in repr(scores)
    assert "1 of 4 answers were not judged" in capsys.readouterr().out


def test_what_a_judge_raises_is_told_with_its_line(model: Any, tokenizer: Any, task: toolkit.Task) -> None:
    def faltering(prediction: str, gold: str, row: dict[str, str]) -> float:
        if prediction != gold:
            raise ConnectionError(f"nobody answers about {row['question']}")
        return 1.0

    scores = evaluate(model, tokenizer, task, faltering)
    assert len(scores.failed) == 4
    with pytest.raises(ItemsFailed, match=r"line 1\): ConnectionError: nobody answers about What is 0 \+ 0\?"):
        scores.check()


# Also for a task whose test set has been read, and judged, already.
def test_a_judge_that_cannot_be_reached_is_told_before_anything_is_generated(task: toolkit.Task) -> None:
    def unreachable(prediction: str, gold: str, row: dict[str, str]) -> float:
        raise ConnectionError("nobody answers")

    assert task.examples("test")
    with raises("scorer.gold", "line 1", "unreachable", "ConnectionError: nobody answers"):
        task.with_scorer(unreachable).examples("test")


def test_a_scorer_of_other_arguments_is_refused_before_anything_is_generated(model: Any, tokenizer: Any, task: Any) -> None:
    with raises("scorer.signature", "(prediction, gold)"):
        evaluate(model, tokenizer, task, lambda prediction: True)


# True and False are no degrees: they have Wilson's interval, and no credit.
def test_true_and_false_have_no_credit(model: Any, tokenizer: Any, task: toolkit.Task) -> None:
    scores = evaluate(model, tokenizer, task, lambda prediction, gold: prediction == gold or gold in "02")
    assert (scores.correct, scores.credit, scores.credit_interval) == (2, None, None)


def test_a_vote_is_judged_with_the_line_too(model: Any, tokenizer: Any, task: toolkit.Task) -> None:
    def judge(prediction: str, gold: str, row: dict[str, str]) -> bool:
        return row["question"].startswith("What is")

    scores = toolkit.evaluate(
        model, tokenizer, task, max_new_tokens=2, batch_size=4, temperature=1.0, samples=2, scorer=judge
    )  # fmt: skip
    scores.check()
    assert scores.correct == 4
