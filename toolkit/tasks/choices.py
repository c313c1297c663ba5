"""The choices of a question, as data hold them.

["Oslo", "Rome"]      ["A) Oslo", "B) Rome"]      {"A": "Oslo", "B": "Rome"}      {"text": ["Oslo", "Rome"], "label": ["1", "2"]}
[{"text": "Oslo", "label": "A"}, {"text": "Rome", "label": "B"}]      {"choices": ["Oslo", "Rome"], "labels": [0, 1]}
or a column for each
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.label_formats import number_of, position_of
from toolkit.tasks.templates import fields_in, parsed_json, text_of

LETTERED = re.compile(r"[(\[]?\s*([A-Za-z]|\d{1,2})\s*(?:[)\]:]|\.(?=\s))\s*(\S.*)", re.DOTALL)
BARE = re.compile(r"[(\[]?\s*(\w+)\s*[)\]]?[.:]?")


@dataclass(frozen=True)
class Choices:
    """`names`: what the data call each, its letter unless they say otherwise (`are_named`); `as_given`: its text with a
    letter of its own. `marked`: the number of the right one, where the data mark it among them."""

    texts: tuple[str, ...]
    names: tuple[str, ...]
    as_given: tuple[str, ...]
    are_named: bool
    marked: int | None = None

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.texts)]

    def named(self, value: Any) -> int | None:
        """The number of the choice that a value names: "B", "b", "(B)", "B."."""
        if not isinstance(value, str):
            number = number_of(value)
            return None if number is None else position_of(str(number), self.names)
        bare = BARE.fullmatch(value.strip())
        found = position_of(value, self.names)
        return position_of(bare[1], self.names) if found is None and bare else found


def choices_of(row: dict[str, Any], columns: str | Sequence[str]) -> Choices:
    """The choices in one column, or in a column each. Raises PollardError for what is no list of at least two."""
    where = f"`{columns}`" if isinstance(columns, str) else ", ".join(f"`{name}`" for name in columns)
    if isinstance(columns, str):
        given, names, marks = _in_column(parsed_json(row.get(columns)))
        if not isinstance(given, list) or len(given) < 2:
            raise PollardError(f"{where} must be a list of at least two choices, not {row.get(columns)!r}.")
    else:
        if lacking := [name for name in columns if name not in row]:
            raise PollardError(f"no field `{lacking[0]}` (task.choices names it). Fields there: {fields_in(row)}.")
        given, names, marks = [row[name] for name in columns], None, None
    if len(given) > len(ascii_uppercase):
        raise PollardError(f"{where} has {len(given)} choices, more than there are letters.")
    texts = []
    for number, value in enumerate(given, start=1):
        try:
            if isinstance(value, dict | list):
                raise ValueError(f"it is {'an object' if isinstance(value, dict) else 'a list'}, not a text")
            texts.append(text_of(value).strip())
        except ValueError as error:
            raise PollardError(f"choice {number} of {where}: {error}.") from None
        if not texts[-1]:
            raise PollardError(f"choice {number} of {where} is empty.")
    as_given = tuple(texts)
    if names is None:
        names, texts = _own_letters(texts)
    marked = None if marks is None else _marked(marks, where)
    if names is not None and len({name.strip() for name in names}) == len(names) == len(texts):
        return Choices(tuple(texts), tuple(name.strip() for name in names), as_given, True, marked)
    return Choices(tuple(texts), tuple(ascii_uppercase[: len(texts)]), as_given, False, marked)


def _in_column(given: Any) -> tuple[Any, list[str] | None, list[Any] | None]:
    """The choices of a column, what it calls them, and of each whether it is marked as right."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, list) and given and all(isinstance(one, dict) and "text" in one for one in given):
        given = {key: [one.get(key) for one in given] for key in given[0]}
    if not isinstance(given, dict):
        return given, None, None
    if isinstance(given.get("text"), list):
        names = given.get("label")
        return given["text"], [str(name) for name in names] if isinstance(names, list) else None, None
    if isinstance(given.get("choices"), list) and isinstance(given.get("labels"), list):
        return given["choices"], None, given["labels"]
    there = {name: text for name, text in given.items() if text is not None}  # a table has every letter in every row
    return list(there.values()), list(there), None


def _marked(marks: list[Any], where: str) -> int:
    """The number of the only choice whose mark is 1. Raises PollardError where it is not one."""
    if (count := sum(number_of(mark) == 1 for mark in marks)) != 1:
        raise PollardError(f"{where} marks {count} choices as right: one must be.")
    return [number_of(mark) for mark in marks].index(1)


def _own_letters(texts: list[str]) -> tuple[list[str] | None, list[str]]:
    """The letters (or numbers) that texts begin with, and the texts without them, where all of them do: "A) Oslo"."""
    found = [LETTERED.fullmatch(text) for text in texts]
    names = [match[1].upper() for match in found if match]
    if sorted(names) not in (list(ascii_uppercase[: len(texts)]), sorted(str(n + 1) for n in range(len(texts)))):
        return None, texts
    return names, [match[2].strip() for match in found if match]
