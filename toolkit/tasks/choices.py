"""How data name the right one of several: choices and labels, by letter, by text or by number.

choices    ["Oslo", "Rome"]    ["A) Oslo", "B) Rome"]    {"A": "Oslo", "B": "Rome"}    or a column for each
           {"text": ["Oslo", "Rome"], "label": ["1", "2"]}
           [{"text": "Oslo", "label": "A"}, {"text": "Rome", "label": "B"}]    {"choices": ["Oslo", "Rome"], "labels": [0, 1]}
answer     "B"    "Oslo"    1    "1"    1.0
label      "negative"    0, its number in `task.labels`

No single line shows whether numbers count from 0 or from 1: all lines of a split are looked at together. Numbers that could
mean either are refused rather than guessed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from string import ascii_uppercase
from typing import Any, NamedTuple

from toolkit.runtime.errors import PollardError
from toolkit.tasks.presets import Preset
from toolkit.tasks.templates import Row, fields_in, is_null, parsed_json, text_of

LETTERED = re.compile(r"[(\[]?\s*([A-Za-z]|\d{1,2})\s*(?:[)\]:]|\.(?=\s))\s*(\S.*)", re.DOTALL)
BARE = re.compile(r"[(\[]?\s*(\w+)\s*[)\]]?[.:]?")
WHOLE = re.compile(r"[+-]?\d{1,9}(\.0+)?")
FIRST_INDEX = {"index_from_0": 0, "index_from_1": 1}  # by `task.label_format`: the number of the first
LABEL_FORMATS = ("letter", "text", *FIRST_INDEX)


@dataclass(frozen=True)
class Choices:
    """The choices of one question."""

    texts: tuple[str, ...]
    names: tuple[str, ...]  # what the data call each; its letter unless `are_named`
    as_given: tuple[str, ...]  # the texts with letters of their own, where they have them
    are_named: bool
    marked: int | None = None  # the index of the right one, where the data mark it among the choices

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.texts)]

    def index_of(self, value: Any) -> int | None:
        """The index of the choice that a value names: "B", "b", "(B)", "B."."""
        if not isinstance(value, str):
            number = whole_number(value)
            return None if number is None else position_of(str(number), self.names)
        bare = BARE.fullmatch(value.strip())
        found = position_of(value, self.names)
        return position_of(bare[1], self.names) if found is None and bare else found


def choices_of(row: Row, columns: str | Sequence[str]) -> Choices:
    """The choices in one column, or in a column each. Raises PollardError for what is no list of at least two."""
    where = f"`{columns}`" if isinstance(columns, str) else ", ".join(f"`{name}`" for name in columns)
    if isinstance(columns, str):
        given, names, marks = _column_parts(parsed_json(row.get(columns)))
        if not isinstance(given, list) or len(given) < 2:
            raise PollardError(
                f"{where} must be a list of at least two choices, not {row.get(columns)!r}.", code="choices.no-list"
            )
    else:
        if lacking := [name for name in columns if name not in row]:
            raise PollardError(
                f"no field `{lacking[0]}` (task.choices names it). Fields there: {fields_in(row)}.", code="data.no-field"
            )
        given, names, marks = [row[name] for name in columns], None, None
    if len(given) > len(ascii_uppercase):
        raise PollardError(f"{where} has {len(given)} choices, more than there are letters.", code="choices.too-many")
    texts = []
    for number, value in enumerate(given, start=1):
        try:
            if isinstance(value, dict | list):
                raise ValueError(f"it is {'an object' if isinstance(value, dict) else 'a list'}, not a text")
            texts.append(text_of(value).strip())
        except ValueError as error:
            raise PollardError(f"choice {number} of {where}: {error}.", code="choices.no-text") from None
        if not texts[-1]:
            raise PollardError(f"choice {number} of {where} is empty.", code="choices.empty")
    as_given = tuple(texts)
    if names is None:
        names, texts = _own_letters(texts)
    marked = None if marks is None else _marked(marks, where)
    if names is not None and len({name.strip() for name in names}) == len(names) == len(texts):
        return Choices(tuple(texts), tuple(name.strip() for name in names), as_given, True, marked)
    return Choices(tuple(texts), tuple(ascii_uppercase[: len(texts)]), as_given, False, marked)


class _ColumnParts(NamedTuple):
    given: Any  # a list of choices, if the column holds any
    names: list[str] | None = None
    marks: list[Any] | None = None  # of each choice, whether it is right


def _column_parts(given: Any) -> _ColumnParts:
    """The choices of a column, the names it gives them, and its marks of the right one."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, list) and given and all(isinstance(one, dict) and "text" in one for one in given):
        given = {key: [one.get(key) for one in given] for key in given[0]}
    if not isinstance(given, dict):
        return _ColumnParts(given)
    if isinstance(given.get("text"), list):
        names = given.get("label")
        return _ColumnParts(given["text"], [str(name) for name in names] if isinstance(names, list) else None)
    if isinstance(given.get("choices"), list) and isinstance(given.get("labels"), list):
        return _ColumnParts(given["choices"], marks=given["labels"])
    present = {name: text for name, text in given.items() if text is not None}  # a table has every letter in every row
    return _ColumnParts(list(present.values()), list(present))


def _marked(marks: list[Any], where: str) -> int:
    """The index of the only choice whose mark is 1. Raises PollardError where it is not exactly one."""
    if (count := sum(whole_number(mark) == 1 for mark in marks)) != 1:
        raise PollardError(f"{where} marks {count} choices as right: one must be.", code="choices.marks")
    return [whole_number(mark) for mark in marks].index(1)


def _own_letters(texts: list[str]) -> tuple[list[str] | None, list[str]]:
    """The letters (or numbers) that texts begin with, and the texts without them, where all of them do: "A) Oslo"."""
    found = [LETTERED.fullmatch(text) for text in texts]
    names = [match[1].upper() for match in found if match]
    if sorted(names) not in (list(ascii_uppercase[: len(texts)]), sorted(str(n + 1) for n in range(len(texts)))):
        return None, texts
    return names, [match[2].strip() for match in found if match]


def whole_number(value: Any) -> int | None:
    """The whole number that 1, 1.0, "1" and "1.0" are alike; None for anything else, and for a truth value."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(float(value)) if WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, Integral):
        return int(value)
    return int(float(value)) if isinstance(value, Real) and float(value).is_integer() else None


def index_number(value: Any) -> int | None:
    """As `whole_number`, but false and true are 0 and 1: for columns that hold numbers by the recipe."""
    return int(value) if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_") else whole_number(value)


def first_index(numbers: Iterable[tuple[int, int]]) -> int | None:
    """Whether numbers count from 0 or from 1, None where they do not show it; each comes with how many choices there are.

    They count from 0 where a 0 is among them, and from 1 where a 1 and a last one is and no 0.
    """
    values = list(numbers)
    zeros, ones = (sum(number == first for number, _ in values) for first in (0, 1))
    beyond = sum(number == count for number, count in values)
    if ones and beyond > zeros:
        return 1
    return 0 if zeros else None


def normalized_word(text: str) -> str:
    """Without differences in case and white space."""
    return " ".join(text.casefold().split())


def position_of(value: Any, texts: Sequence[str]) -> int | None:
    """The index of the only text that equals a value: exactly, else apart from case and white space; None without one."""
    try:
        text = text_of(value)
    except ValueError:
        return None
    if text.strip() in texts:
        return texts.index(text.strip()) if texts.count(text.strip()) == 1 else None
    found = [number for number, one in enumerate(texts) if normalized_word(one) == normalized_word(text)]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class LabelReader:
    """How a split gives the label of a line: as a word, or as a number."""

    column: str
    labels: Sequence[str]
    first: int | None  # the number of the first label; None: numbers are no labels
    class_names: Sequence[str] = ()  # of the data set, by number, where they are the task's labels
    by_recipe: bool = False  # the recipe says that numbers are positions, even where labels are numbers themselves

    def read(self, row: Row) -> Row:
        """The row with its label as a word, and all labels as `labels`. Raises PollardError for a value that is no label."""
        if self.column not in row:
            raise PollardError(
                f"no field `{self.column}` (task.label names it). Fields there: {fields_in(row)}.", code="data.no-field"
            )
        value = row[self.column]
        position = self._position(value)
        if position is None:
            counted = self.first is not None and whole_number(value) is not None
            numbers = f" (or {self.first} to {len(self.labels) - 1 + int(self.first or 0)})" if counted else ""
            if isinstance(value, bool):
                numbers += " (with `task.label_format: index_from_0` false is the first and true the second)"
            raise PollardError(
                f"`{self.column}` is {value!r}, and the labels are {', '.join(self.labels)}{numbers}.", code="labels.unknown"
            )
        return row | {"label": self.labels[position], "labels": ", ".join(self.labels)}

    def _position(self, value: Any) -> int | None:
        if is_null(value):
            return None
        number = index_number(value) if self.by_recipe else whole_number(value)
        if self.class_names and number is not None and 0 <= number < len(self.class_names):
            value, number = self.class_names[number], None
        counted = self.by_recipe and number is not None
        if not counted and (index := _index_of_word(value, self.labels)) is not None:
            return index
        if self.first is None or number is None or not 0 <= number - self.first < len(self.labels):
            return None
        return number - self.first


def _index_of_word(value: Any, labels: Sequence[str]) -> int | None:
    """The index of the label that equals a value as a word, or as a number where labels are numbers."""
    if (index := position_of(value, labels)) is not None:
        return index
    number = whole_number(value)
    return next((n for n, label in enumerate(labels) if number is not None and whole_number(label) == number), None)


def label_reader(rows: Iterable[Row], preset: Preset, class_names: Mapping[str, Sequence[str]]) -> LabelReader:
    """How the rows of a split give their labels. Raises PollardError where their numbers could count from 0 or from 1."""
    column, labels = str(preset.label), preset.labels
    if not labels:
        raise PollardError("a classification needs `task.labels`, e.g. labels: [positive, negative].", code="task.no-labels")
    names = class_names.get(column, ())
    if names and {normalized_word(name) for name in names} <= {normalized_word(label) for label in labels}:
        return LabelReader(column, labels, None, names)
    if preset.label_format is not None:
        first = FIRST_INDEX.get(preset.label_format)
        return LabelReader(column, labels, first, by_recipe=first is not None)
    if any(whole_number(label) is not None for label in labels):
        return LabelReader(column, labels, None)
    values = [row[column] for row in rows if column in row and _index_of_word(row[column], labels) is None]
    numbers = [(value, number) for value in values if (number := whole_number(value)) is not None]
    first = first_index((number, len(labels)) for _, number in numbers)
    if first is None and any(isinstance(value, str) for value, _ in numbers):
        examples = ", ".join(map(str, sorted({number for _, number in numbers})[:5]))
        raise PollardError(
            f"The column `{column}` holds numbers ({examples}) that could count the labels from 0 or from 1: say "
            "`task.label_format: index_from_0` or `index_from_1`.",
            code="labels.ambiguous",
        )
    return LabelReader(column, labels, first or 0)
