import json
from pathlib import Path

from toolkit.evaluation import EvaluationFacts, Item, Scores
from toolkit.runtime.intervals import wilson


def item(index: int, correct: bool = True, prediction: str = "#### 1", ended: bool = True) -> Item:
    return Item(index, "1?", "#### 1", prediction, correct, tokens=4, ended=ended)


def test_a_score_carries_its_n() -> None:
    scores = Scores([item(0), item(1, False), item(2)])
    assert (scores.correct, scores.n, scores.score) == (2, 3, 2 / 3)
    assert scores.interval == wilson(2, 3)
    assert (Scores([]).score, Scores([]).interval) == (0.0, (0.0, 1.0))


def test_saving_leaves_a_summary_and_one_line_per_item(tmp_path: Path) -> None:
    items = [item(0), item(1, False, " ", ended=False), item(2, prediction="two\nlines é")]
    Scores(items, EvaluationFacts(task="gsm8k", split="test")).save(tmp_path / "evaluation", "pruned")
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["pruned.json", "pruned.predictions.jsonl"]
    summary = json.loads((tmp_path / "evaluation" / "pruned.json").read_text())
    assert summary == {
        "score": 2 / 3, "correct": 2, "n": 3, "interval": list(wilson(2, 3)), "flexible_score": 0.0, "flexible_correct": 0,
        "generated_tokens": 12, "truncated": 1, "empty": 1, "unfinished_reasoning": 0, "failed": 0, "given_up": 0,
        "task": "gsm8k", "split": "test",
    }  # fmt: skip
    lines = (tmp_path / "evaluation" / "pruned.predictions.jsonl").read_text().splitlines()
    assert [Item(**json.loads(line)) for line in lines] == items


# Readers tell "not known" (null) from "does not apply" (no key).
def test_facts_that_do_not_apply_have_no_key_and_unknown_ones_are_null() -> None:
    assert EvaluationFacts(task="gsm8k", batch_size=4).to_json() == {"task": "gsm8k", "batch_size": 4}
    assert EvaluationFacts(seconds=1.0).to_json() == {"seconds": 1.0, "tokens_per_second": None}
    assert EvaluationFacts(parameters=8).to_json() == {"parameters": 8, "checkpoint_bytes": None}
