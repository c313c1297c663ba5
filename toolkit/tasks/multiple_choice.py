"""Questions with lettered choices, in the forms they are published in.

    {"question": "…", "choices": ["Oslo", "Rome"], "answer": 1}                                              as in MMLU
    {"question": "…", "choices": {"text": ["Oslo", "Rome"], "label": ["A", "B"]}, "answerKey": "B"}          as in ARC
    {"question": "…", "options": ["A)Oslo", "B)Rome"], "correct": "B"}                                       as in AQuA
    {"question": "…", "opa": "Oslo", "opb": "Rome", "opc": "Bonn", "opd": "Bern", "cop": 1}                  as in MedMCQA
    {"sentence": "… _ …", "option1": "Oslo", "option2": "Rome", "answer": "2"}                               as in WinoGrande
    {"question": "…", "distractor1": "Rome", …, "correct_answer": "Oslo"}                                    as in SciQ

Where a column of its own holds the right choice, or marks show it (TruthfulQA), it is often the first: there the choices of
each question are put into an order that is drawn from its texts, always the same.

Two scores: the letter that the model writes, and the choice whose text it finds the likeliest (evaluation/likelihood.py).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.runtime.errors import PollardError
from toolkit.tasks.choices import FIRST_INDEX, Choices, choices_of, first_index, position_of, whole_number
from toolkit.tasks.presets import MULTIPLE_CHOICE, Preset
from toolkit.tasks.templates import Row, fields_in, is_null

GOLD_COLUMNS = (
    "answer", "answerKey", "answer_key", "answer_idx", "answer_index", "label", "gold", "gold_label", "correct",
    "correct_answer", "correct_option", "cop", "target",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The columns of a published data set."""

    question: str
    choices: tuple[str, ...]
    format: str | None = None  # how it names the right choice, where a small sample may not show it
    label: str | None = None  # the column among `choices` that holds the right one


SHAPES = (
    Shape("question_stem", ("choices",)),  # OpenBookQA
    Shape("sentence", ("option1", "option2"), "index_from_1"),  # WinoGrande
    Shape("goal", ("sol1", "sol2"), "index_from_0"),  # PIQA
    Shape("ctx", ("endings",), "index_from_0"),  # HellaSwag
    Shape("question", ("opa", "opb", "opc", "opd")),  # MedMCQA: cop counts from 1 in its files, from 0 on the hub
    Shape("question", ("correct_answer", "distractor1", "distractor2", "distractor3"), label="correct_answer"),  # SciQ
    Shape(
        "Question",
        ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        label="Correct Answer",
    ),  # GPQA
    Shape("question", ("mc1_targets",)),  # TruthfulQA
    Shape("question", ("options",)),  # AQuA, MedQA, RACE
)


@dataclass(frozen=True)
class ChoiceReader:
    """How a split holds its questions and names the right choice. `label` is None where marks among the choices show it."""

    columns: str | Sequence[str]
    question: str
    label: str | None
    format: str = "letter"

    def read(self, row: Row) -> Row:
        """The row with `options` ("A. Oslo\\nB. Rome"), the `letter`, text (`choice`) and index (`right`) of the right one, and
        the `texts` of all. Raises PollardError for choices that are none, and a right one that is not among them."""
        choices = choices_of(row, self.columns)
        right, drawn = self._right(row, choices)
        texts, letters = choices.texts, choices.letters
        if drawn:
            order = _order(row, len(texts))
            texts, right = tuple(texts[number] for number in order), order.index(right)
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
        more = {"options": options, "letter": letters[right], "choice": texts[right], "texts": list(texts), "right": right}
        return {"question": row.get(self.question)} | row | more

    def _right(self, row: Row, choices: Choices) -> tuple[int, bool]:
        """The index of the right choice, and whether the order of the choices is to be drawn."""
        if self.label is None and choices.marked is not None:
            return choices.marked, True
        column = self.label
        if column is None or column not in row:
            wanted = f"`{column}`" if column else f"one of {', '.join(GOLD_COLUMNS[:3])}, … (task.label names it)"
            raise PollardError(
                f"no column says which choice is right: {wanted}. Fields there: {fields_in(row)}.", code="choices.no-gold"
            )
        if not isinstance(self.columns, str) and column in self.columns:
            return list(self.columns).index(column), True
        right = position(choices, row[column], self.format)
        if right is None:
            first, names = FIRST_INDEX.get(self.format, 0), ", ".join(choices.names)
            raise PollardError(
                f"`{column}` is {row[column]!r}, and the choices are {names} (or {first} to {len(choices.names) - 1 + first}).",
                code="choices.unknown-gold",
            )
        return right, False


def _order(row: Row, count: int) -> list[int]:
    """Indices in an order that depends on the texts of the row alone: not on the recipe's seed, so that runs compare, nor on
    other rows."""
    texts = sorted(value for value in row.values() if isinstance(value, str))
    return random.Random("\n".join(texts)).sample(range(count), count)


def position(choices: Choices, value: Any, form: str) -> int | None:
    """The index of the choice that a value names under a `task.label_format`; None where it names none."""
    if is_null(value):
        return None
    if form == "letter":
        return choices.index_of(value)
    if form == "text":
        index = position_of(value, choices.texts)
        return position_of(value, choices.as_given) if index is None else index
    number = whole_number(value)
    return number - FIRST_INDEX[form] if number is not None and 0 <= number - FIRST_INDEX[form] < len(choices.texts) else None


def choice_reader(rows: Sequence[Row], preset: Preset, class_names: Mapping[str, Sequence[str]]) -> ChoiceReader:
    """How the rows of a split are to be read. Raises PollardError where they could be read in several ways."""
    columns, shape = preset.choices or "", _shape(rows, preset)
    if shape:
        columns = shape.choices[0] if len(shape.choices) == 1 else shape.choices
    question = shape.question if shape else "question"
    label = preset.label or (shape and shape.label)
    if label and not isinstance(columns, str) and label in columns:
        return ChoiceReader(columns, question, label)
    readable = [(row, choices) for row in rows if (choices := _choices(row, columns))]
    if not label and readable and all(choices.marked is not None for _, choices in readable):
        return ChoiceReader(columns, question, None)
    names = [preset.label] if preset.label else [name for name in GOLD_COLUMNS if any(not is_null(row.get(name)) for row in rows)]
    candidates = [_gold_column(name, readable, preset, shape, name in class_names) for name in names]
    chosen = _only(candidates, len(readable))
    return ChoiceReader(columns, question, chosen and chosen.name, chosen.format if chosen else "letter")


def _shape(rows: Sequence[Row], preset: Preset) -> Shape | None:
    """The published data set that rows look like, where the recipe leaves it open which columns they have."""
    if preset.choices != MULTIPLE_CHOICE.choices or not rows or {"question", "choices"} <= rows[0].keys():
        return None
    return next((shape for shape in SHAPES if {shape.question, *shape.choices} <= rows[0].keys()), None)


def _choices(row: Row, columns: str | Sequence[str]) -> Choices | None:
    try:
        return choices_of(row, columns)
    except PollardError:
        return None


Readings = list[int | None]  # of each row, the index of the choice that is right


class GoldColumn(NamedTuple):
    """A column that may say which choice is right: in what format, which choices it then names, and why that is not certain."""

    name: str
    format: str
    readings: Readings
    ambiguity: str = ""


def _gold_column(
    name: str, readable: list[tuple[Row, Choices]], preset: Preset, shape: Shape | None, counted_from_0: bool
) -> GoldColumn:
    def read(form: str) -> Readings:
        return [position(choices, row.get(name), form) for row, choices in readable]

    if preset.label_format:
        return GoldColumn(name, preset.label_format, read(preset.label_format))
    readings = {form: read(form) for form in ("letter", "text")}
    if not (_count(readings["letter"]) and any(choices.are_named for _, choices in readable)):
        values = [(row.get(name), len(choices.texts)) for row, choices in readable]
        readings |= {form: read(form) for form in _index_formats(name, values, preset, shape, counted_from_0)}
    most = max(map(_count, readings.values()))
    best = [form for form in readings if _count(readings[form]) == most]
    ambiguity = ""
    if most and _differ([readings[form] for form in best]):
        forms = " or ".join(f"`{form}`" for form in best)
        ambiguity = f"`{name}` could name the right choice in several ways: say `task.label_format`, {forms}."
    return GoldColumn(name, best[0], readings[best[0]], ambiguity)


def _index_formats(
    name: str, values: list[tuple[Any, int]], preset: Preset, shape: Shape | None, counted_from_0: bool
) -> tuple[str, ...]:
    """How numbers in a column may count; `values` are its values, each with how many choices its row has."""
    first = first_index((number, count) for value, count in values if (number := whole_number(value)) is not None)
    as_in_mmlu = (preset.choices, name) == ("choices", "answer") and not any(isinstance(value, str) for value, _ in values)
    if counted_from_0 or (first is None and as_in_mmlu):
        return ("index_from_0",)
    if first is not None:
        return (f"index_from_{first}",)
    return (shape.format,) if shape and shape.format else ("index_from_0", "index_from_1")


def _count(readings: Readings) -> int:
    return sum(right is not None for right in readings)


def _differ(all_readings: Sequence[Readings]) -> bool:
    """Whether two readings name different choices in some row."""
    together = zip(*all_readings, strict=True)
    return any(len({right for right in rights if right is not None}) > 1 for rights in together)


def _only(candidates: list[GoldColumn], rows: int) -> GoldColumn | None:
    """The column that says what is right: one that names a choice in at least half of the rows.

    Raises PollardError where that is ambiguous.
    """
    serving = [column for column in candidates if 2 * _count(column.readings) >= max(1, rows)]
    clear = [column for column in serving if not column.ambiguity]
    if serving and not clear:
        raise PollardError(serving[0].ambiguity, code="choices.ambiguous")
    if len(clear) > 1 and _differ([column.readings for column in clear]):
        names = ", ".join(f"`{column.name}`" for column in clear)
        raise PollardError(
            f"Several columns name a choice, not always the same ({names}): say which is right, `task.label`.",
            code="choices.several-golds",
        )
    return next(iter(clear or candidates), None)
