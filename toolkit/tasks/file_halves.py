"""One data file in two: rows to train on and rows to test with, that share no question."""

import random
from collections.abc import Iterable, Sequence

from toolkit.runtime.errors import PollardError
from toolkit.tasks.question_words import words_in
from toolkit.tasks.templates import Row, is_null, json_of, readable_text

TEST_SHARE, MOST_TESTED = 0.2, 1000


def split_by_question(rows: Sequence[Row], question: Sequence[str], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """(train, test), both in the order of `rows`: a fifth of the different questions, at most 1,000, is tested. Rows whose
    columns `question` have the same words go together. Raises PollardError for fewer than two questions."""
    keys = [words_in(" ".join(readable_text(row.get(name)) or "" for name in question)) for row in rows]
    different = sorted(set(keys))
    if len(different) < 2:
        raise PollardError(
            f"There is {len(different)} question in {len(rows)} row{'s' * (len(rows) != 1)}: some to train on and others to test "
            "with are needed. Name a file of test questions with --test.",
            code="init.one-question",
        )
    number = min(MOST_TESTED, max(1, round(TEST_SHARE * len(different))))
    tested = set(random.Random(seed).sample(different, number))
    halves: tuple[list[Row], list[Row]] = ([], [])
    for row, key in zip(rows, keys, strict=True):
        halves[key in tested].append(row)
    return halves


def json_lines(rows: Iterable[Row]) -> str:
    """JSON, one row a line; numbers, dates and texts as templates read them from the row itself. Raises PollardError for a value
    that has no JSON form (infinity, half a character)."""
    return "".join(f"{_json_line(row)}\n" for row in rows)


def _json_line(row: Row) -> str:
    try:
        return json_of({name: None if is_null(value) else value for name, value in row.items()})
    except ValueError as error:
        raise PollardError(
            f"A row cannot be written as JSON: {error}. Mend it, or name a file of test questions with --test: {str(row)[:200]}",
            code="init.no-json",
        ) from None
