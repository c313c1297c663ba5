"""How data name the right one of several labels or choices: by its letter, its text, or its number.

"B"      "Oslo"      1      "1"      1.0

Whether numbers count from 0 or from 1 no single line can tell: all lines of a split are looked at together. Numbers that
could mean either are refused rather than guessed.
"""

import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from toolkit.tasks.templates import text_of

WHOLE = re.compile(r"[+-]?\d{1,9}(\.0+)?")
FIRST = {"index_from_0": 0, "index_from_1": 1}  # the number of the first


def number_of(value: Any) -> int | None:
    """The whole number that 1, 1.0, "1" and "1.0" are alike; None for anything else, and for a truth value."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(float(value)) if WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, Integral):
        return int(value)
    return int(float(value)) if isinstance(value, Real) and float(value).is_integer() else None


def index_of(value: Any) -> int | None:
    """`number_of`, where a recipe says that a column holds numbers: of false and true 0 and 1."""
    return int(value) if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_") else number_of(value)


def first_index(numbers: Iterable[tuple[int, int]]) -> int | None:
    """Whether numbers count from 0 or from 1, where they show it; each comes with how many there are to choose from.

    They count from 0 where a 0 is among them, and from 1 where a 1 and a last one is and no 0.
    """
    values = list(numbers)
    zeros, ones = (sum(number == first for number, _ in values) for first in (0, 1))
    beyond = sum(number == count for number, count in values)
    if ones and beyond > zeros:
        return 1
    return 0 if zeros else None


def same(text: str) -> str:
    """Without what does not matter between two ways to write a word: case, and white space around and between."""
    return " ".join(text.casefold().split())


def position_of(value: Any, texts: Sequence[str]) -> int | None:
    """The only one of the texts that a value is: letter by letter, else apart from case and white space."""
    try:
        text = text_of(value)
    except ValueError:
        return None
    if text.strip() in texts:
        return texts.index(text.strip()) if texts.count(text.strip()) == 1 else None
    found = [number for number, one in enumerate(texts) if same(one) == same(text)]
    return found[0] if len(found) == 1 else None
