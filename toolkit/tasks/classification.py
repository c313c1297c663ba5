"""A text and one of a few words for it.

{"text": "The food was cold.", "label": "negative"}        or "label": 0, the number of the word in `labels`
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.tasks.choices import FIRST, first_index, index_of, number_of, position_of, same
from toolkit.tasks.preset import Preset
from toolkit.tasks.templates import fields_in, is_null

CLASSIFICATION = Preset(
    about="a text and one of a few words for it (`labels`)",
    train="train",
    test="test",
    prompt="{text}\nAnswer with one of: {labels}.",
    completion="{label}",
    scorer="label",
    label="label",
)


@dataclass(frozen=True)
class Labels:
    """How a split says which label a line has: by its word, or by its number from `first` on (None: numbers are no labels).

    `names`: the words of the data set's own classes, by number, where it names them as the task does.
    """

    column: str
    labels: Sequence[str]
    first: int | None
    names: Sequence[str] = ()
    declared: bool = False  # the recipe says that numbers are positions, even where labels are numbers, too

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its label as a word, and all of them as `labels`. Raises PollardError for one that is none of them."""
        if self.column not in row:
            raise PollardError(f"no field `{self.column}` (task.label names it). Fields there: {fields_in(row)}.")
        value = row[self.column]
        position = self._position(value)
        if position is None:
            counted = self.first is not None and number_of(value) is not None
            numbers = f" (or {self.first} to {len(self.labels) - 1 + int(self.first or 0)})" if counted else ""
            if isinstance(value, bool):
                numbers += " (with `task.label_format: index_from_0` false is the first and true the second)"
            raise PollardError(f"`{self.column}` is {value!r}, and the labels are {', '.join(self.labels)}{numbers}.")
        return row | {"label": self.labels[position], "labels": ", ".join(self.labels)}

    def _position(self, value: Any) -> int | None:
        if is_null(value):
            return None
        number = index_of(value) if self.declared else number_of(value)
        if self.names and number is not None and 0 <= number < len(self.names):
            value, number = self.names[number], None
        counted = self.declared and number is not None
        if not counted and (found := _word(value, self.labels)) is not None:
            return found
        if self.first is None or number is None or not 0 <= number - self.first < len(self.labels):
            return None
        return number - self.first


def _word(value: Any, labels: Sequence[str]) -> int | None:
    """The label that a value is as a word; as a number where labels are numbers."""
    if (found := position_of(value, labels)) is not None:
        return found
    number = number_of(value)
    return next((n for n, label in enumerate(labels) if number is not None and number_of(label) == number), None)


def labels_of(rows: Iterable[dict[str, Any]], preset: Preset, class_names: Mapping[str, Sequence[str]]) -> Labels:
    """How the rows of a split name their labels. Raises PollardError where their numbers could count from 0 or from 1."""
    column, labels = str(preset.label), preset.labels
    if not labels:
        raise PollardError("a classification needs `task.labels`, e.g. labels: [positive, negative].")
    names = class_names.get(column, ())
    if names and {same(name) for name in names} <= {same(label) for label in labels}:
        return Labels(column, labels, None, names)
    if preset.label_format is not None:
        first = FIRST.get(preset.label_format)
        return Labels(column, labels, first, declared=first is not None)
    if any(number_of(label) is not None for label in labels):
        return Labels(column, labels, None)
    values = [row[column] for row in rows if column in row and _word(row[column], labels) is None]
    numbers = [(value, number) for value in values if (number := number_of(value)) is not None]
    first = first_index((number, len(labels)) for _, number in numbers)
    if first is None and any(isinstance(value, str) for value, _ in numbers):
        seen = ", ".join(map(str, sorted({number for _, number in numbers})[:5]))
        raise PollardError(
            f"The column `{column}` holds numbers ({seen}) that could count the labels from 0 or from 1: say "
            "`task.label_format: index_from_0` or `index_from_1`."
        )
    return Labels(column, labels, first or 0)
