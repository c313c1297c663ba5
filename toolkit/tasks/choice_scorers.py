"""Scorers for answers that are one of few: the letter of a choice, the word of a class.

gold "B":  strictly "B", "(B)", "B. Oslo";  flexibly also "The answer is (B), since …" and a last line with one letter only
gold "positive":  strictly "positive";  flexibly also "I would say: Positive."
"""

import re
from collections.abc import Sequence

from toolkit.tasks.readings import final_part, likeliest_part, words_of
from toolkit.tasks.scorer import Scorer

ONLY_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s|$)|\)[.:]|$)")
BRACKETED = re.compile(r"\(([A-Z])\)")
LETTER = re.compile(r"\b([B-HJ-Z]|A(?!\s+(?!or\b|and\b)[a-z])|I(?!['’]|\s+[a-z]))\b")  # neither the article nor the pronoun


def strict_letter(text: str) -> str | None:
    """The letter that the final part is, or begins with: "B", "(B)", "B. Oslo"; None where it does neither."""
    found = ONLY_LETTER.match(final_part(text))
    return found[1] if found else None


def flexible_letter(text: str) -> str | None:
    """The only letter of the likeliest part, one in brackets before any other; None where it names two."""
    part = likeliest_part(text)
    letters = set(BRACKETED.findall(part)) or set(LETTER.findall(part))
    return letters.pop() if len(letters) == 1 else None


CHOICE = Scorer(
    lambda prediction, gold: strict_letter(gold) is not None and strict_letter(prediction) == strict_letter(gold),
    lambda prediction, gold: strict_letter(gold) is not None and flexible_letter(prediction) == strict_letter(gold),
)


def label_scorer(labels: Sequence[str]) -> Scorer:
    """The answer is the gold label and nothing else (strict), or its likeliest part names that label alone."""
    words = [words_of(label) for label in labels]

    def named(text: str) -> list[list[str]]:
        there = f" {' '.join(words_of(text))} "
        return [label for label in words if f" {' '.join(label)} " in there]

    def strict(prediction: str, gold: str) -> bool:
        return words_of(final_part(gold)) in words and final_part(prediction) == final_part(gold)

    def flexible(prediction: str, gold: str) -> bool:
        return named(likeliest_part(prediction)) == [words_of(final_part(gold))]

    return Scorer(strict, flexible)
