"""Is this answer right? One small function per rule and reading; SCORERS is all there is.

The strict reading demands the format that the gold answer shows; the flexible one takes the likeliest meaning of a text:
what follows `####`, else what stands in `\\boxed{}`, else what follows "the answer is", else the last number or line.
"""

import re
import string
from decimal import Decimal, InvalidOperation

from toolkit.tasks.scorer import Scorer

NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")  # the - of 10-12 is no sign
ANSWER_IS = re.compile(r"\banswer(?:\s+is)?\s*:?[\s*]*(?=\S)(.+)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
MARK = "####"


def final_part(text: str) -> str:
    """What follows the first `####` up to the end of its line; the whole text where there is no mark."""
    _, mark, rest = text.partition(MARK)
    return " ".join((rest.strip().partition("\n")[0] if mark else text).split())


def likeliest_part(text: str) -> str:
    """Where an answer most likely stands: behind the mark, in the box, behind "answer is", or in the last line."""
    if MARK in text:
        return final_part(text)
    if found := BOXED.findall(text) or ANSWER_IS.findall(text):
        return " ".join(found[-1].split())
    lines = text.split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")


def number_in(text: str) -> Decimal | None:
    """The number after `####`, else the last one in the text; None where there is none."""
    marked = MARK in text
    return _number(final_part(text) if marked else text, 0 if marked else -1)


def _number(text: str, which: int) -> Decimal | None:
    numbers = NUMBER.findall(text)
    if not numbers:
        return None
    try:
        return Decimal(re.sub(r"[$,]", "", numbers[which]))
    except InvalidOperation:
        return None


def exact(prediction: str, gold: str) -> bool:
    """The final part is the same text, apart from white space."""
    return final_part(prediction) == final_part(gold)


def exact_flexible(prediction: str, gold: str) -> bool:
    """The likeliest part is the same words, apart from case and punctuation."""
    right = words_of(final_part(gold))
    return bool(right) and words_of(likeliest_part(prediction)) == right


def words_of(text: str) -> list[str]:
    """Words in small letters, without the punctuation around them."""
    bare = (word.strip(string.punctuation) for word in text.casefold().split())
    return [word for word in bare if word]


def numeric(prediction: str, gold: str) -> bool:
    """The same number: 1,000 = 1000.0 = $1000. Behind `####`, where the gold answer has it there."""
    return (MARK in prediction or MARK not in gold) and _same(number_in(prediction), gold)


def numeric_flexible(prediction: str, gold: str) -> bool:
    """The same number, behind a mark, in a box, behind "the answer is", or else the last one."""
    found = None if MARK in prediction else (BOXED.findall(prediction) or ANSWER_IS.findall(prediction))
    number = _number(found[-1], 0) if found else None
    if number is None:
        number = number_in(prediction)
    if number is None:  # a mark without a number
        number = _number(prediction, -1)
    return _same(number, gold)


def _same(number: Decimal | None, gold: str) -> bool:
    right = number_in(gold)
    return right is not None and number == right


def contains(prediction: str, gold: str) -> bool:
    """The gold text occurs somewhere in the prediction, whatever its case."""
    return final_part(gold).casefold() in prediction.casefold()


def contains_flexible(prediction: str, gold: str) -> bool:
    """Its words do, apart from punctuation."""
    right = " ".join(words_of(final_part(gold)))
    return bool(right) and f" {right} " in f" {' '.join(words_of(prediction))} "


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(exact, exact_flexible),
    "numeric": Scorer(numeric, numeric_flexible),
    "contains": Scorer(contains, contains_flexible),
}
