"""Scorers for numbers and texts: exact, numeric, contains, f1, regex.

The strict reading demands the format that the gold answer shows; the flexible one takes the likeliest meaning of a text.
"""

import time
from collections import Counter

import regex

from toolkit.runtime.errors import PollardError
from toolkit.tasks.quantities import numbers_in, plain
from toolkit.tasks.readings import (
    MARK,
    answer_part,
    gold_number,
    gold_part,
    likeliest_number,
    likeliest_part,
    marked_number_part,
    named_answers,
    squeezed,
    strict_number,
    words_of,
)
from toolkit.tasks.scorer import Scorer, Verdict, quoted

ARTICLES = {"a", "an", "the"}
HALF = 0.5
PATTERN_SECONDS = 10.0  # for all that a pattern looks for in one answer


def exact(prediction: str, gold: str) -> bool:
    """The answer is the same text, apart from white space."""
    return answer_part(prediction, gold) == gold_part(gold)


def exact_flexible(prediction: str, gold: str) -> bool:
    """The likeliest part is the same words, apart from case and punctuation."""
    right = words_of(gold_part(gold))
    return bool(right) and words_of(likeliest_part(prediction, gold)) == right


def numeric(prediction: str, gold: str) -> bool:
    """The same number: 1,000 = 1000.0 = $1000, 3/4 = 0.75. Behind `####`, where the gold answer has it there."""
    right, found = gold_number(gold), strict_number(prediction, gold)
    return right is not None and found is not None and found.answers(right)


def numeric_flexible(prediction: str, gold: str) -> bool:
    """The same number, behind a mark, in a box, behind "the answer is", or else the last one."""
    right, found = gold_number(gold), likeliest_number(prediction)
    return right is not None and found is not None and found.answers(right)


class NumericScorer(Scorer):
    """A gold answer is one number, not several and no formula."""

    def _gold_fault(self, gold: str, verdict: Verdict) -> str | None:
        if gold_number(gold) is None and numbers_in(plain(gold)):
            return (
                f"finds no single number in the answer {quoted(gold)}: give one number (1,234.5, 3/4, 1 1/2, 1e-05; commas "
                f"separate thousands only), alone or behind {MARK}"
            )
        return super()._gold_fault(gold, verdict)

    def as_gold(self, prediction: str, gold: str) -> str:
        number = strict_number(prediction, gold)
        before = f"{MARK} " if marked_number_part(gold) is not None else "The answer is " if named_answers(gold) else ""
        return prediction if number is None else f"{before}{number.value}"


def contains(prediction: str, gold: str) -> bool:
    """The gold text occurs somewhere in the prediction, whatever its case."""
    right = gold_part(gold).casefold()
    return bool(right) and right in squeezed(prediction).casefold()


def contains_flexible(prediction: str, gold: str) -> bool:
    """Its words do, apart from punctuation."""
    right = " ".join(words_of(gold_part(gold)))
    return bool(right) and f" {right} " in f" {' '.join(words_of(prediction))} "


def f1(prediction: str, gold: str) -> float:
    """Of the words that answer and gold text have in common: 2 · common / (words here + words there), without articles
    (SQuAD, arXiv 1606.05250). Where one has no other words than articles, all of them count."""
    ours, theirs = (words_of(part) for part in (answer_part(prediction, gold), gold_part(gold)))
    if not ({*ours} - ARTICLES and {*theirs} - ARTICLES):
        return float(bool(theirs) and ours == theirs)
    counts = [Counter(word for word in words if word not in ARTICLES) for words in (ours, theirs)]
    common = (counts[0] & counts[1]).total()
    return 2 * common / (counts[0].total() + counts[1].total())


class F1Scorer(Scorer):
    """Strict: all words the same. Flexible: an F1 of at least one half. Its mean is reported beside both."""

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        return super()._verdict(prediction, gold)._replace(credit=f1(prediction, gold))


class RegexScorer(Scorer):
    """What the pattern's first group finds first is the gold text (strict), or what it finds last is it apart from case and
    punctuation. The gold answer is read by the pattern too, where it matches.

    A pattern that backtracks without end is given up after `seconds`: the answer is wrong, with a note.
    """

    def __init__(self, pattern: str, seconds: float = PATTERN_SECONDS) -> None:
        super().__init__(lambda prediction, gold: self._verdict(prediction, gold).strict, lambda prediction, gold: False)
        self._seconds = seconds
        try:
            self._pattern = regex.compile(pattern, regex.VERSION0)  # the syntax of Python's re
        except regex.error as error:
            raise PollardError(f"task.pattern {pattern!r} is no regular expression: {error}.") from None

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        until = time.monotonic() + self._seconds
        try:
            right = (self._found(gold, until) or [gold_part(gold)])[0]
            found = self._found(prediction, until)
        except TimeoutError:
            return Verdict(False, False, note=f"the pattern did not end within {self._seconds:g} s")
        strict = bool(right) and found[:1] == [right]
        return Verdict(strict, strict or any(words_of(text) == words_of(right) != [] for text in found[-1:]))

    def _found(self, text: str, until: float) -> list[str]:
        """What the groups find; the first that takes part of each match."""
        matches = self._pattern.finditer(text, timeout=max(until - time.monotonic(), 1e-3))
        return [next((group for group in match.groups() if group is not None), "").strip() for match in matches]


EXACT, CONTAINS, NUMERIC = (
    Scorer(exact, exact_flexible),
    Scorer(contains, contains_flexible),
    NumericScorer(numeric, numeric_flexible),
)
F1 = F1Scorer(lambda prediction, gold: f1(prediction, gold) == 1, lambda prediction, gold: f1(prediction, gold) >= HALF)
