"""Scorers for answers that are one of few: the letter of a choice, the word of a class.

gold "B":  strictly "B", "(B)", "B. Oslo";  flexibly also "The answer is (B), since …" and a last line with one letter only
gold "positive":  strictly "positive";  flexibly also "I would say: Positive."

A longer label counts before one inside it ("very positive" is not "positive"), and what is denied is not named ("It is not
spam", "neither A nor B").
"""

import re
import string
from collections.abc import Sequence

from toolkit.recipe.data import label_words
from toolkit.tasks.readings import answer_part, gold_part, likeliest_part, squeezed
from toolkit.tasks.scorer import Scorer

ONLY_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s|$)|\)[.:]|$)")
BRACKETED = re.compile(r"\(([A-Z])\)")
# Neither the article nor the pronoun; between letters of other scripts, too
LETTER = re.compile(r"\b([B-HJ-Z]|A(?!\s+(?!or\b|and\b)[a-z])|I(?!['’]|\s+[a-z]))\b", re.ASCII)

_CLAUSE_ENDS = re.compile(r"[.,;:!?\n]|\bbut\b|\brather\b|\bhence\b|\bso\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:not(?!\s+only\b)|no(?!\s+(?:doubt|question)\b)|never|neither|nor|cannot|\w+n['’]t|(?:is|are|was|does|do|did|would|ca)nt)\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\W*(?:or|nor)\W*", re.IGNORECASE)


def _not_denied(text: str, mentions: Sequence[re.Match[str]]) -> list[str]:
    """What is mentioned and nowhere denied. A denial holds for what is mentioned next in its clause, and what "or" adds."""
    named, denied = [], set()
    end, before_is_denied = 0, False
    for mention in mentions:
        between = text[end : mention.start()]
        goes_on = before_is_denied and _GOES_ON.fullmatch(between)
        clause = _CLAUSE_ENDS.split(between)[-1]
        before_is_denied = bool(goes_on or _DENIAL.search(clause))
        if before_is_denied:
            denied.add(mention[1])
        named.append(mention[1])
        end = mention.end()
    return [name for name in dict.fromkeys(named) if name not in denied]


def strict_letter(part: str) -> str | None:
    """The letter that an answer is, or begins with: "B", "(B)", "B. Oslo"; None where it does neither."""
    found = ONLY_LETTER.match(part)
    return found[1] if found else None


def flexible_letter(part: str) -> str | None:
    """The only letter that a sentence names, one in brackets before any other; None where it names two."""
    mentions = list(BRACKETED.finditer(part)) or list(LETTER.finditer(part))
    letters = _not_denied(part, mentions)
    return letters[0] if len(letters) == 1 else None


def _is_a_letter(line: str) -> bool:
    return ONLY_LETTER.fullmatch(line.strip("*_` ")) is not None


def _begins_with_a_letter(part: str) -> bool:
    return strict_letter(part) is not None


def choice(prediction: str, gold: str) -> bool:
    right = strict_letter(gold_part(gold))
    return right is not None and strict_letter(answer_part(prediction, gold, _begins_with_a_letter)) == right


def choice_flexible(prediction: str, gold: str) -> bool:
    right = strict_letter(gold_part(gold))
    return right is not None and flexible_letter(likeliest_part(prediction, gold, _begins_with_a_letter, _is_a_letter)) == right


CHOICE = Scorer(choice, choice_flexible)


def label_scorer(labels: Sequence[str]) -> Scorer:
    """The answer is the gold label and nothing else, as the gold text writes it (strict), or its likeliest part names that
    label alone."""
    by_words = {label_words(label): label for label in labels}
    spelt = (re.escape(words).replace(r"\ ", r"[\s_-]+") for words in sorted(by_words, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({'|'.join(spelt)})(?![\w+#]|[-'’]\w)")

    def label_of(part: str) -> str | None:
        return by_words.get(label_words(part)) or by_words.get(label_words(part.strip(string.punctuation)))

    def is_label(part: str) -> bool:
        return label_of(part) is not None

    def named(text: str) -> set[str]:
        text = squeezed(text).casefold()
        return {by_words[label_words(found)] for found in _not_denied(text, list(pattern.finditer(text)))}

    def strict(prediction: str, gold: str) -> bool:
        return is_label(gold_part(gold)) and answer_part(prediction, gold, is_label) == gold_part(gold)

    def flexible(prediction: str, gold: str) -> bool:
        right = label_of(gold_part(gold))
        return right is not None and named(likeliest_part(prediction, gold, is_label, is_label)) == {right}

    return Scorer(strict, flexible)
