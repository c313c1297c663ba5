"""Laws: of one file's rows each is in one half; no question is in both; the same seed gives the same halves; what is written
reads as it was."""

import datetime
import json
from collections import Counter
from decimal import Decimal

from conftest import raises

from toolkit.tasks.file_halves import json_lines, split_by_question
from toolkit.tasks.templates import fill_template

ROWS = [{"q": f"Question {n // 3}{'?' * (n % 3)}", "a": str(n)} for n in range(300)]  # each question three times


def test_no_question_is_trained_on_and_tested() -> None:
    train, test = split_by_question(ROWS, ["q"])
    assert Counter(row["a"] for row in train + test) == Counter(row["a"] for row in ROWS)
    assert len(test) == 60
    asked = [{row["q"].rstrip("?") for row in half} for half in (train, test)]
    assert not asked[0] & asked[1]


def test_a_seed_gives_the_same_halves_whatever_the_order() -> None:
    train, test = split_by_question(ROWS, ["q"], seed=3)
    assert split_by_question(ROWS, ["q"], seed=3) == (train, test)
    other = split_by_question(ROWS[::-1], ["q"], seed=3)
    assert (other[0][::-1], other[1][::-1]) == (train, test)
    assert split_by_question(ROWS, ["q"], seed=4)[1] != test


def test_at_most_a_thousand_are_tested_and_at_least_one() -> None:
    assert len(split_by_question([{"q": str(n)} for n in range(9000)], ["q"])[1]) == 1000
    assert [len(half) for half in split_by_question([{"q": "a"}, {"q": "b"}], ["q"])] == [1, 1]


def test_one_question_cannot_be_split() -> None:
    with raises("init.one-question", "1 question", "2 rows"):
        split_by_question([{"q": "Why?"}, {"q": "why"}], ["q"])


def test_written_rows_read_as_the_rows_themselves() -> None:
    row = {
        "text": "007 ü \u2028",
        "number": 1e-05,
        "day": datetime.date(2024, 2, 29),
        "price": Decimal("1.25"),
        "list": ["a", 1.5, None],
    }
    again = json.loads(json_lines([row]))
    template = "{text} {number} {day} {price} {list}"
    assert fill_template(template, again, "here") == fill_template(template, row, "here")
    assert json.loads(json_lines([{"empty": None, "nan": float("nan")}])) == {"empty": None, "nan": None}


def test_what_has_no_json_is_refused_and_not_changed() -> None:
    with raises("init.no-json", "infinite"):
        json_lines([{"q": float("inf")}])
