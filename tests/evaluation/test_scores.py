import json
import math
from pathlib import Path

import pytest

from toolkit.evaluation import Item, Scores, wilson


def item(index: int, correct: bool = True, prediction: str = "#### 1", ended: bool = True) -> Item:
    return Item(index, "1?", "#### 1", prediction, correct, tokens=4, ended=ended)


# Published values (e.g. Newcombe 1998; R's prop.test without continuity correction), to four digits.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)],
)
def test_wilson_agrees_with_known_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


# Wilson's definition, independently: the ends are the p at which the observed share lies 1.96 standard errors away.
@pytest.mark.parametrize(("correct", "n"), [(1, 3), (5, 10), (599, 1000), (1318, 1319)])
def test_the_ends_of_the_interval_solve_wilsons_equation(correct: int, n: int) -> None:
    for end in wilson(correct, n):
        assert abs(correct / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_the_interval_stays_in_bounds_and_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for n in (1, 7, 1319):
        for correct in (0, 1, n):
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1


def test_a_score_carries_its_n() -> None:
    scores = Scores([item(0), item(1, False), item(2)], {})
    assert (scores.correct, scores.n, scores.score) == (2, 3, 2 / 3)
    assert scores.interval == wilson(2, 3)
    assert (Scores([], {}).score, Scores([], {}).interval) == (0.0, (0.0, 1.0))


def test_saving_leaves_a_summary_and_one_line_per_item(tmp_path: Path) -> None:
    items = [item(0), item(1, False, " ", ended=False), item(2, prediction="two\nlines é")]
    Scores(items, {"task": "gsm8k", "split": "test"}).save(tmp_path / "evaluation", "pruned")
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["pruned.json", "pruned.predictions.jsonl"]
    summary = json.loads((tmp_path / "evaluation" / "pruned.json").read_text())
    assert summary == {
        "score": 2 / 3, "correct": 2, "n": 3, "interval": list(wilson(2, 3)), "generated_tokens": 12, "truncated": 1,
        "empty": 1, "task": "gsm8k", "split": "test",
    }  # fmt: skip
    lines = (tmp_path / "evaluation" / "pruned.predictions.jsonl").read_text().splitlines()
    assert [Item(**json.loads(line)) for line in lines] == items
