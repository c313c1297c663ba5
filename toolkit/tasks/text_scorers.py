"""Scorers for numbers and texts: exact, numeric, contains, f1, regex.

The strict reading demands the format that the gold answer shows; the flexible one takes the likeliest meaning of a text.
"""

import re
from collections import Counter

from toolkit.tasks.readings import MARK, final_part, likeliest_number, likeliest_part, number_in, words_of
from toolkit.tasks.scorer import Scorer, Verdict

ARTICLES = {"a", "an", "the"}
HALF = 0.5


def exact(prediction: str, gold: str) -> bool:
    """The final part is the same text, apart from white space."""
    return final_part(prediction) == final_part(gold)


def exact_flexible(prediction: str, gold: str) -> bool:
    """The likeliest part is the same words, apart from case and punctuation."""
    right = words_of(final_part(gold))
    return bool(right) and words_of(likeliest_part(prediction)) == right


def numeric(prediction: str, gold: str) -> bool:
    """The same number: 1,000 = 1000.0 = $1000. Behind `####`, where the gold answer has it there."""
    right = number_in(gold)
    return (MARK in prediction or MARK not in gold) and right is not None and number_in(prediction) == right


def numeric_flexible(prediction: str, gold: str) -> bool:
    """The same number, behind a mark, in a box, behind "the answer is", or else the last one."""
    right = number_in(gold)
    return right is not None and likeliest_number(prediction) == right


def contains(prediction: str, gold: str) -> bool:
    """The gold text occurs somewhere in the prediction, whatever its case."""
    return final_part(gold).casefold() in prediction.casefold()


def contains_flexible(prediction: str, gold: str) -> bool:
    """Its words do, apart from punctuation."""
    right = " ".join(words_of(final_part(gold)))
    return bool(right) and f" {right} " in f" {' '.join(words_of(prediction))} "


def f1(prediction: str, gold: str) -> float:
    """Of the words that final part and gold text have in common: 2 · common / (words here + words there), without articles
    (SQuAD, arXiv 1606.05250)."""
    ours, theirs = (Counter(word for word in words_of(final_part(text)) if word not in ARTICLES) for text in (prediction, gold))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


class F1Scorer(Scorer):
    """Strict: all words the same. Flexible: an F1 of at least one half. Its mean is reported beside both."""

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        return super()._verdict(prediction, gold)._replace(credit=f1(prediction, gold))


def regex_scorer(pattern: str) -> Scorer:
    """What the pattern's first group finds first is the gold text (strict), or what it finds last is it apart from case and
    punctuation. The gold answer is read by the pattern too, where it matches."""
    compiled = re.compile(pattern)

    def found(text: str) -> list[str]:
        return [next((group for group in match.groups() if group is not None), "").strip() for match in compiled.finditer(text)]

    def right(gold: str) -> str:
        return (found(gold) or [final_part(gold)])[0]

    return Scorer(
        lambda prediction, gold: bool(right(gold)) and found(prediction)[:1] == [right(gold)],
        lambda prediction, gold: any(words_of(text) == words_of(right(gold)) for text in found(prediction)[-1:]),
    )


EXACT, NUMERIC, CONTAINS = Scorer(exact, exact_flexible), Scorer(numeric, numeric_flexible), Scorer(contains, contains_flexible)
F1 = F1Scorer(lambda prediction, gold: f1(prediction, gold) == 1, lambda prediction, gold: f1(prediction, gold) >= HALF)
