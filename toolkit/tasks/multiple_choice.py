"""Questions with lettered choices, in the forms they are published in.

    {"question": "…", "choices": ["Oslo", "Rome"], "answer": 1}                                              as in MMLU
    {"question": "…", "choices": {"text": ["Oslo", "Rome"], "label": ["A", "B"]}, "answerKey": "B"}          as in ARC

Two scores: the letter that the model writes, and the choice whose text it finds the likeliest (evaluation/choices.py).
"""

from string import ascii_uppercase
from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.preset import Preset

GOLD = ("answer", "answerKey", "label", "gold")

MULTIPLE_CHOICE = Preset(
    about="lettered choices, as MMLU and ARC have them: the letter, and the likeliest choice",
    train="train",
    test="test",
    prompt="{question}\n{options}\nAnswer with the letter.",
    completion="{letter}",
    answer="{letter}",
    cloze="{question}",
    choices="choices",
    scorer="choice",
)


def lettered(row: dict[str, Any], column: str) -> dict[str, Any]:
    """The row with `options` ("A. Oslo\\nB. Rome"), `letter` of the right one, `choice` (its text) and
    number (`right`), and `texts` of all.

    Raises PollardError for choices that are none, and a right one that is not among them.
    """
    given = row.get(column)
    texts, names = (given.get("text"), given.get("label")) if isinstance(given, dict) else (given, None)
    if not isinstance(texts, list) or len(texts) < 2:
        raise PollardError(f"`{column}` must be a list of at least two choices, not {given!r}.")
    if len(texts) > len(ascii_uppercase):
        raise PollardError(f"`{column}` has {len(texts)} choices, more than there are letters.")
    texts = [str(text).strip() for text in texts]
    empty = [number for number, text in enumerate(texts, start=1) if not text]
    if empty:
        raise PollardError(f"choice {empty[0]} of `{column}` is empty.")
    letters = ascii_uppercase[: len(texts)]
    right = _index(row, [str(name) for name in names] if isinstance(names, list) else list(letters), len(texts))
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return row | {"options": options, "letter": letters[right], "choice": texts[right], "texts": texts, "right": right}


def _index(row: dict[str, Any], names: list[str], count: int) -> int:
    """Which choice is right: a column says its letter (or name), or its number from 0 on."""
    column = next((name for name in GOLD if row.get(name) is not None), None)
    if column is None:
        raise PollardError(f"no column says which choice is right: one of {', '.join(GOLD)}. Fields there: {', '.join(row)}.")
    said = row[column]
    if isinstance(said, str) and said.strip() in names:
        return names.index(said.strip())
    number = int(said) if isinstance(said, int) or (isinstance(said, str) and said.strip().isdigit()) else -1
    if isinstance(said, bool) or not 0 <= number < count:
        raise PollardError(f"`{column}` is {said!r}, and the choices are {', '.join(names)} (or 0 to {count - 1}).")
    return number
