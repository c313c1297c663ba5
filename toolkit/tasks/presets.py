"""Every task that has a name: what it fixes in advance. A recipe's own keys win over it.

A new task is one `Preset` here and its entry in PRESETS: the columns of its data become texts by templates, and `prepare`
cleans a line before them where that is not enough.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.runtime.embedded import EMBEDDED
from toolkit.runtime.errors import PollardError
from toolkit.tasks.data_files import Source
from toolkit.tasks.templates import Row, is_null, text_of


def unchanged(row: Row) -> Row:
    return row


@dataclass(frozen=True)
class Preset:
    """Defaults for the fields of the same names in `TaskRecipe`; `prepare` cleans a raw line before the templates, `sizes`
    says how many lines a hub data set's splits have, and `about` is one line for `pollard tasks`."""

    about: str = ""
    dataset: str | None = None
    subset: str | None = None
    train: Source | None = None
    test: Source | None = None
    system: str | None = None
    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    scorer: str | None = None
    pattern: str | None = None
    labels: Sequence[str] | None = None
    label: str | None = None
    label_format: str | None = None
    choices: str | Sequence[str] | None = None
    cloze: str | None = None
    shots: int = 0
    chat: bool = True
    stop: Sequence[str] = ()
    prepare: Callable[[Row], Row] = unchanged
    sizes: Mapping[str, int] = field(default_factory=dict)


# Grade-school math (Cobbe et al., arXiv 2110.14168): 7,473 problems to train on, 1,319 to test.
#
#     {"question": "Natalia sold clips to 48 of her friends in April, and then …",
#      "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips … .\n#### 72"}
#
# The `<<…>>` annotations steer a calculator that is not used here, so they are taken out. The number after `####` is the
# answer.
_ANNOTATION = re.compile(r"<<[^>]*>>")


def without_annotations(row: Row) -> Row:
    return row | {"answer": _ANNOTATION.sub("", row["answer"])} if isinstance(row.get("answer"), str) else row


GSM8K = Preset(
    about="grade-school math in words (hub: openai/gsm8k), the number behind ####",
    dataset="openai/gsm8k",
    subset="main",
    train="train",
    test="test",
    prompt="{question}\nThink step by step, then write #### and the number.",
    completion="{answer}",
    scorer="numeric",
    prepare=without_annotations,
    sizes={"train": 7473, "test": 1319},
)


# Competition problems (Hendrycks et al., arXiv 2103.03874): 7,500 to train on, 5,000 to test; MATH-500 is a part of those.
#
#     {"problem": "What is $\frac{1}{2} - \frac13$?", "solution": "… $= \boxed{\frac{1}{6}}.$", "level": "Level 1", …}
#
# The answer stands in the solution's last `\boxed{}`. Drawings (`[asy] … [/asy]`) stay: some problems make no sense without.
HENDRYCKS_MATH = Preset(
    about=r"competition mathematics (hub: DigitalLearningGmbH/MATH-lighteval), judged by math-verify, in \boxed{}",
    dataset="DigitalLearningGmbH/MATH-lighteval",
    train="train",
    test="test",
    prompt="{problem}\nThink step by step, then put the final answer in \\boxed{{}}.",
    completion="{solution}",
    scorer="math",
    sizes={"train": 7500, "test": 5000},
)


# Simple sums in varied words (SVAMP, Patel et al., arXiv 2103.07191): 700 to train on and 300 to test on the hub.
#
#     {"Body": "Edward spent $ 6 to buy 2 books each book costing him the same.", "Question": "How much did each book cost?",
#      "Equation": "( 6.0 / 2.0 )", "Answer": 3.0}
#
# The completion is the equation, then the number: "6 / 2 = 3\n#### 3".
_WHOLE_DECIMAL = re.compile(r"(\d+)\.0\b")


def with_worked_solution(row: Row) -> Row:
    """The row with `work` and `number` as people write them, in addition to its own columns."""
    added = {}
    if not is_null(row.get("Equation")):
        work = _whole_numbers("Equation", row).strip()
        in_brackets = work.startswith("(") and work.endswith(")") and ")" not in work[:-1]
        added["work"] = work[1:-1].strip() if in_brackets else work
    if not is_null(row.get("Answer")):
        added["number"] = _whole_numbers("Answer", row)
    return row | added


def _whole_numbers(column: str, row: Row) -> str:
    """A column's text, its whole numbers without the ".0" of the data. Raises PollardError for what is no text or number."""
    try:
        return _WHOLE_DECIMAL.sub(r"\1", text_of(row[column]))
    except ValueError as error:
        raise PollardError(f"the field `{column}`: {error}.", code="data.no-text") from None


SVAMP = Preset(
    about="simple sums in varied words (hub: ChilleD/SVAMP), the number behind ####",
    dataset="ChilleD/SVAMP",
    train="train",
    test="test",
    prompt="{Body} {Question}\nThink step by step, then write #### and the number.",
    completion="{work} = {number}\n#### {number}",
    scorer="numeric",
    prepare=with_worked_solution,
    sizes={"train": 700, "test": 300},
)


# Questions with lettered choices. The published shapes that are understood: tasks/multiple_choice.py.
MULTIPLE_CHOICE = Preset(
    about="lettered choices, as MMLU, ARC, AQuA, MedMCQA, WinoGrande, PIQA have them: the letter, and the likeliest choice",
    train="train",
    test="test",
    prompt="{question}\n{options}\nAnswer with the letter.",
    completion="{letter}",
    answer="{letter}",
    cloze="{question}",
    choices="choices",
    scorer="choice",
)


# A text and one of a few words for it: {"text": "The food was cold.", "label": "negative"}. Numbers for words: tasks/choices.py.
CLASSIFICATION = Preset(
    about="a text and one of a few words for it (`labels`)",
    train="train",
    test="test",
    prompt="{text}\nAnswer with one of: {labels}.",
    completion="{label}",
    scorer="label",
    label="label",
)


# The embedded tasks of data/playground: small, seeded, and what the model in the same folder was trained on.
#
#     {"question": "Mia has 6 boxes with 4 pens each and gives away 9 pens. How many pens are left?",
#      "answer": "6 * 4 = 24. 24 - 9 = 15. #### 15"}
_PLAYGROUND_FOLDER = EMBEDDED / "data" / "playground"
_PLAYGROUND_SUBJECTS = {
    "arithmetic": "small sums in words",
    "sorting": "words into the order of the alphabet",
    "reversing": "letters, backwards",
    "facts": "what is true of made-up people, learnt by heart",
    "logic": "who is the tallest of three",
    "code": "what a few lines of a program print",
}
SUBJECTS = tuple(_PLAYGROUND_SUBJECTS)
PLAYGROUND = {
    f"playground/{subject}": Preset(
        about=f"embedded: {about}",
        train=str(_PLAYGROUND_FOLDER / subject / "train.jsonl"),
        test=str(_PLAYGROUND_FOLDER / subject / "test.jsonl"),
        prompt="{question}",
        completion="{answer}",
        scorer="exact",
    )
    for subject, about in _PLAYGROUND_SUBJECTS.items()
}


PRESETS: dict[str, Preset] = {  # in the order of `pollard tasks`
    "custom": Preset(about="your own JSONL files or hub data set, by templates over its columns", scorer="exact"),
    "gsm8k": GSM8K,
    "math": HENDRYCKS_MATH,
    "svamp": SVAMP,
    "multiple_choice": MULTIPLE_CHOICE,
    "classification": CLASSIFICATION,
    **PLAYGROUND,
}
