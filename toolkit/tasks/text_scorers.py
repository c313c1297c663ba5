"""Scorers for numbers, texts and choices: exact, numeric, contains, f1, regex; choice and label.

The strict reading demands the format that the gold answer shows; the flexible one takes the likeliest meaning of a text.

gold "B":  strictly "B", "(B)", "B. Oslo";  flexibly also "The answer is (B), since …" and a last line with one letter only
gold "positive":  strictly "positive";  flexibly also "I would say: Positive."

A longer label counts before one inside it ("very positive" is not "positive"), and what is denied is not named ("It is not
spam", "neither A nor B").
"""

import re
import string
import time
from collections import Counter
from collections.abc import Sequence

import regex

from toolkit.recipe.data import label_words
from toolkit.runtime.errors import PollardError
from toolkit.tasks.quantities import normalized_numbers, numbers_in
from toolkit.tasks.scorer import (
    MARK,
    Scorer,
    Verdict,
    answer_part,
    gold_number,
    gold_part,
    likeliest_number,
    likeliest_part,
    marked_number_part,
    named_answers,
    normalized_spaces,
    quoted,
    strict_number,
    words_of,
)

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
    return right is not None and found is not None and found.matches(right)


def numeric_flexible(prediction: str, gold: str) -> bool:
    """The same number, behind a mark, in a box, behind "the answer is", or else the last one."""
    right, found = gold_number(gold), likeliest_number(prediction)
    return right is not None and found is not None and found.matches(right)


class NumericScorer(Scorer):
    """A gold answer is one number, not several and no formula."""

    def _gold_fault(self, gold: str, verdict: Verdict) -> str | None:
        if gold_number(gold) is None and numbers_in(normalized_numbers(gold)):
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
    return bool(right) and right in normalized_spaces(prediction).casefold()


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
    """Strict: all words the same. Flexible: an F1 of at least one half. Its mean is reported as well."""

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
            raise PollardError(f"task.pattern {pattern!r} is no regular expression: {error}.", code="task.pattern") from None

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        until = time.monotonic() + self._seconds
        try:
            right = (self._matched(gold, until) or [gold_part(gold)])[0]
            matched = self._matched(prediction, until)
        except TimeoutError:
            return Verdict(False, False, note=f"the pattern did not end within {self._seconds:g} s")
        strict = bool(right) and matched[:1] == [right]
        return Verdict(strict, strict or any(words_of(text) == words_of(right) != [] for text in matched[-1:]))

    def _matched(self, text: str, until: float) -> list[str]:
        """The text of every match: its first group that took part, else an empty one."""
        matches = self._pattern.finditer(text, timeout=max(until - time.monotonic(), 1e-3))
        return [next((group for group in match.groups() if group is not None), "").strip() for match in matches]


EXACT, CONTAINS, NUMERIC = (
    Scorer(exact, exact_flexible),
    Scorer(contains, contains_flexible),
    NumericScorer(numeric, numeric_flexible),
)
F1 = F1Scorer(lambda prediction, gold: f1(prediction, gold) == 1, lambda prediction, gold: f1(prediction, gold) >= HALF)


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
    """The names that are mentioned and nowhere denied. A denial covers the next mention in its clause, and
    those that "or" adds."""
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


class LabelScorer(Scorer):
    """Strict: the answer is the gold label as the gold text writes it. Flexible: its likeliest part names that label alone."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(self._is_gold, self._names_gold)
        self._by_words = {label_words(label): label for label in labels}
        spelt = (re.escape(words).replace(r"\ ", r"[\s_-]+") for words in sorted(self._by_words, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(spelt)})(?![\w+#]|[-'’]\w)")

    def _is_gold(self, prediction: str, gold: str) -> bool:
        return self._is_label(gold_part(gold)) and answer_part(prediction, gold, self._is_label) == gold_part(gold)

    def _names_gold(self, prediction: str, gold: str) -> bool:
        right = self._label_of(gold_part(gold))
        return right is not None and self._named_in(likeliest_part(prediction, gold, self._is_label, self._is_label)) == {right}

    def _label_of(self, part: str) -> str | None:
        return self._by_words.get(label_words(part)) or self._by_words.get(label_words(part.strip(string.punctuation)))

    def _is_label(self, part: str) -> bool:
        return self._label_of(part) is not None

    def _named_in(self, text: str) -> set[str]:
        text = normalized_spaces(text).casefold()
        return {self._by_words[label_words(name)] for name in _not_denied(text, list(self._pattern.finditer(text)))}
