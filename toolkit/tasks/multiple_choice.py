"""Questions with lettered choices, in the forms they are published in.

    {"question": "…", "choices": ["Oslo", "Rome"], "answer": 1}                                              as in MMLU
    {"question": "…", "choices": {"text": ["Oslo", "Rome"], "label": ["A", "B"]}, "answerKey": "B"}          as in ARC
    {"question": "…", "options": ["A)Oslo", "B)Rome"], "correct": "B"}                                       as in AQuA
    {"question": "…", "opa": "Oslo", "opb": "Rome", "opc": "Bonn", "opd": "Bern", "cop": 1}                  as in MedMCQA
    {"sentence": "… _ …", "option1": "Oslo", "option2": "Rome", "answer": "2"}                               as in WinoGrande
    {"question": "…", "distractor1": "Rome", …, "correct_answer": "Oslo"}                                    as in SciQ

Where a column of its own holds the right choice, or marks tell it (TruthfulQA), its place says nothing, and is often the first:
there the choices of each question are put in an order drawn for it, always the same.

Two scores: the letter that the model writes, and the choice whose text it finds the likeliest (evaluation/choices.py).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.tasks.choices import FIRST_INDEX, Choices, choices_of, first_index, position_of, whole_number
from toolkit.tasks.presets import MULTIPLE_CHOICE, Preset
from toolkit.tasks.templates import fields_in, is_null

GOLD = (
    "answer", "answerKey", "answer_key", "answer_idx", "answer_index", "label", "gold", "gold_label", "correct",
    "correct_answer", "correct_option", "cop", "target",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The columns of a published data set. `format`: how it says which choice is right, where a small sample may not show
    it; `label`: the column among `choices` that holds the right one."""

    question: str
    choices: tuple[str, ...]
    format: str | None = None
    label: str | None = None


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
    """How a split holds its questions, and says which choice is right."""

    columns: str | Sequence[str]
    question: str
    label: str | None
    format: str = "letter"

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with `options` ("A. Oslo\\nB. Rome"), `letter` of the right one, `choice` (its text) and number (`right`),
        and `texts` of all. Raises PollardError for choices that are none, and a right one that is not among them."""
        choices = choices_of(row, self.columns)
        right, drawn = self._right(row, choices)
        texts, letters = choices.texts, choices.letters
        if drawn:
            order = _order(row, len(texts))
            texts, right = tuple(texts[number] for number in order), order.index(right)
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
        more = {"options": options, "letter": letters[right], "choice": texts[right], "texts": list(texts), "right": right}
        return {"question": row.get(self.question)} | row | more

    def _right(self, row: dict[str, Any], choices: Choices) -> tuple[int, bool]:
        """The number of the right choice, and whether its place says nothing."""
        if self.label is None and choices.marked is not None:
            return choices.marked, True
        column = self.label
        if column is None or column not in row:
            wanted = f"`{column}`" if column else f"one of {', '.join(GOLD[:3])}, … (task.label names it)"
            raise PollardError(f"no column says which choice is right: {wanted}. Fields there: {fields_in(row)}.")
        if not isinstance(self.columns, str) and column in self.columns:
            return list(self.columns).index(column), True
        right = position(choices, row[column], self.format)
        if right is None:
            first, names = FIRST_INDEX.get(self.format, 0), ", ".join(choices.names)
            raise PollardError(
                f"`{column}` is {row[column]!r}, and the choices are {names} (or {first} to {len(choices.names) - 1 + first})."
            )
        return right, False


def _order(row: dict[str, Any], count: int) -> list[int]:
    """Numbers of choices in an order that depends on the texts of the row alone: not on the recipe's seed, so that runs
    compare, nor on other rows."""
    texts = sorted(value for value in row.values() if isinstance(value, str))
    return random.Random("\n".join(texts)).sample(range(count), count)


def position(choices: Choices, value: Any, form: str) -> int | None:
    """The number, from 0 on, of the choice that a value names."""
    if is_null(value):
        return None
    if form == "letter":
        return choices.named(value)
    if form == "text":
        found = position_of(value, choices.texts)
        return position_of(value, choices.as_given) if found is None else found
    number = whole_number(value)
    return number - FIRST_INDEX[form] if number is not None and 0 <= number - FIRST_INDEX[form] < len(choices.texts) else None


def choice_reader(rows: Sequence[dict[str, Any]], preset: Preset, class_names: Mapping[str, Sequence[str]]) -> ChoiceReader:
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
    names = [preset.label] if preset.label else [name for name in GOLD if any(not is_null(row.get(name)) for row in rows)]
    found = [(name, *_format(name, readable, preset, shape, name in class_names)) for name in names]
    chosen = _only(found, readable)
    return ChoiceReader(columns, question, chosen and chosen[0], chosen[1] if chosen else "letter")


def _shape(rows: Sequence[dict[str, Any]], preset: Preset) -> Shape | None:
    """The published data set that rows look like, where the recipe leaves it open which columns they have."""
    if preset.choices != MULTIPLE_CHOICE.choices or not rows or {"question", "choices"} <= rows[0].keys():
        return None
    return next((shape for shape in SHAPES if {shape.question, *shape.choices} <= rows[0].keys()), None)


def _choices(row: dict[str, Any], columns: str | Sequence[str]) -> Choices | None:
    try:
        return choices_of(row, columns)
    except PollardError:
        return None


Readings = list[int | None]


def _format(
    name: str, readable: list[tuple[dict[str, Any], Choices]], preset: Preset, shape: Shape | None, counted_from_0: bool
) -> tuple[str, Readings, str]:
    """The form in which a column names choices, what it then names in each row, and why that cannot be told."""

    def read(form: str) -> Readings:
        return [position(choices, row.get(name), form) for row, choices in readable]

    def count(form: str) -> int:
        return sum(right is not None for right in readings[form])

    if preset.label_format:
        return preset.label_format, read(preset.label_format), ""
    values = [(row.get(name), len(choices.texts)) for row, choices in readable]
    numbers = [(number, of) for value, of in values if (number := whole_number(value)) is not None]
    readings = {form: read(form) for form in ("letter", "text")}
    indices: tuple[str, ...] = ("index_from_0", "index_from_1")
    as_in_mmlu = (preset.choices, name) == ("choices", "answer") and not any(isinstance(value, str) for value, _ in values)
    first = first_index(numbers)
    if counted_from_0 or (first is None and as_in_mmlu):
        indices = ("index_from_0",)
    elif first is not None:
        indices = (f"index_from_{first}",)
    elif shape and shape.format:
        indices = (shape.format,)
    if not (count("letter") and any(choices.are_named for _, choices in readable)):
        readings |= {form: read(form) for form in indices}
    most = max(map(count, readings))
    best = [form for form in readings if count(form) == most]
    if most and _differ([readings[form] for form in best]):
        forms = " or ".join(f"`{form}`" for form in best)
        return (
            best[0],
            readings[best[0]],
            f"`{name}` could name the right choice in several ways: say `task.label_format`, {forms}.",
        )
    return best[0], readings[best[0]], ""


def _differ(all_readings: Sequence[Readings]) -> bool:
    together = zip(*all_readings, strict=True)
    return any(len({right for right in rights if right is not None}) > 1 for rights in together)


def _only(found: list[tuple[str, str, Readings, str]], readable: list[tuple[dict[str, Any], Choices]]) -> tuple[str, str] | None:
    """The column that says what is right, and how: one that names a choice in at least half of the rows."""
    served = [one for one in found if 2 * sum(right is not None for right in one[2]) >= max(1, len(readable))]
    clear = [one for one in served if not one[3]]
    if served and not clear:
        raise PollardError(served[0][3])
    if len(clear) > 1 and _differ([one[2] for one in clear]):
        names = ", ".join(f"`{one[0]}`" for one in clear)
        raise PollardError(f"Several columns name a choice, not always the same ({names}): say which is right, `task.label`.")
    chosen = next(iter(clear or found), None)
    return chosen and (chosen[0], chosen[1])
