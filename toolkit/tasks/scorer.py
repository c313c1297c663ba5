"""A scorer reads an answer twice: strictly, which demands the format, and flexibly, which looks for what was meant.

answer "So she has 72 clips."    gold "… #### 72"      strict: no, there is no ####    flexible: yes

Where in a text its answer stands:

"He pays 3 + 4 = 7.\\n#### 7"      strictly: what follows #### up to the end of its line
"… so it is \\boxed{7}."           flexibly also: the box, what follows "answer is", else the last line or number

`####` is also how Markdown writes a heading. It marks an answer where the gold answer's last line has it, too; and in front of
a number, where numbers are compared ("#### Step 1 … #### 72" is 72). Of several marks the first counts, since a model may go on
to a next question; the last, where the gold answer itself has several.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.tasks.quantities import Number, last_number, leading_number, normalized_numbers, numbers_in, sole_number
from toolkit.tasks.templates import Row

Judge = Callable[[str, str], bool]  # prediction, gold
QUOTED = 200  # characters of an answer, in a message


class Verdict(NamedTuple):
    """What a scorer says of one answer, by both readings."""

    strict: bool
    flexible: bool
    error: str | None = None  # what the scorer raised; then neither reading holds
    note: str | None = None  # why a comparison was given up; it counts as wrong
    credit: float | None = None  # a degree of rightness from 0 to 1, of scorers that give one


@dataclass(frozen=True)
class Scorer:
    """`flexible` accepts whatever `strict` accepts, and more."""

    strict: Judge
    flexible: Judge
    takes_row = False  # whether it also looks at the line of data that a question comes from

    def verdicts(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[Verdict]:
        """One for each prediction and gold answer. Whatever the scorer raises is in the verdict of the item. `rows`: the lines of
        data that the questions come from, for scorers that look at them."""
        return [self._verdict(*pair) for pair in pairs]

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        try:
            strict = self.strict(prediction, gold)
            return Verdict(strict, strict or self.flexible(prediction, gold))
        except Exception as error:  # reported with the item, and the stage fails
            return Verdict(False, False, f"{type(error).__name__}: {error}")

    def is_right(self, prediction: str, gold: str, row: Row | None = None) -> bool:
        """Strictly. Raises what the scorer raises."""
        return self.strict(prediction, gold)

    def gold_faults(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[str | None]:
        """For each completion and gold answer why no answer can be judged by it; None where the gold answer is right itself."""
        verdicts = self.verdicts([(gold, gold) for _, gold in pairs])
        return [self._gold_fault(gold, verdict) for (_, gold), verdict in zip(pairs, verdicts, strict=True)]

    def _gold_fault(self, gold: str, verdict: Verdict) -> str | None:
        if verdict.error or verdict.note:
            return f"fails on the answer {quoted(gold)} itself: {verdict.error or verdict.note}"
        if not gold_part(gold) or not verdict.strict:
            return f"finds nothing to compare with in the answer {quoted(gold)}"
        return None

    def as_gold(self, prediction: str, gold: str) -> str:
        """What a prediction answers, as a gold answer in the format of `gold`: two predictions agree where one is right by
        the other."""
        part = answer_part(prediction, gold) if declares_mark(gold) else ""
        return f"{MARK} {part}" if part else prediction


def quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED // 2]} … {text[-QUOTED // 2 :]}")


MARK = "####"
BOX = "\\boxed{"
_MARK = re.compile(r"(?<!#)####(?!#)\s*")
_ANSWER_IS = re.compile(
    r"\b(?i:answer)\b(?:\s+[\w'’-]+|\s*\([^()\n]*\)){0,8}?[\s*_'\"”’)]*(?i:\bis\b\s*:?|\b(?:must|would|should)\s+be\b|[:=])[\s*_]*(?=\S)"
    r"|^[ \t#>*_]*(?i:(?:the\s+)?(?:final\s+)?answer)\b[*_]*(?:[ \t]+(?![a-z])|[ \t]*\n\s*)[*_]*(?=\S)",
    re.MULTILINE,
)
_NUMBER_FOLLOWS = re.compile(r"(?:[\s*_`\"'(\[{=≈]|\\boxed\{|\\[(\[]|\$)*")
_FENCE = re.compile(r"(?:`{3,}|~{3,})\w*|[-*_=]{3,}")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_HEADING = re.compile(r"(?:step|part|case)\s*\d+\b|\d{1,3}[.):]\s+\S", re.IGNORECASE)
_ENUMERATED = re.compile(r"(\d{1,3})[.):]\s+\S")


def parts_behind_marks(text: str) -> list[str]:
    """What follows each `####`, up to the end of its line or the next one."""
    starts = list(_MARK.finditer(text))
    ends = [*(mark.start() for mark in starts[1:]), len(text)][: len(starts)]
    return [normalized_spaces(text[mark.end() : end].partition("\n")[0]) for mark, end in zip(starts, ends, strict=True)]


def declares_mark(gold: str) -> bool:
    """Whether a gold answer says that answers stand behind `####`: its last line has it. A heading has text below it."""
    lines = re.sub(r"####\s*\n\s*(?=\S)", "#### ", gold.strip()).split("\n")
    return _MARK.search(lines[-1]) is not None


def is_no_heading(part: str) -> bool:
    return not _HEADING.match(part)


def answer_part(text: str, gold: str, is_answer: Callable[[str], bool] = is_no_heading) -> str:
    """The answer in a text, in the format of the gold answer: the line behind the first mark that is an answer (`is_answer`),
    where the gold answer has a mark; otherwise the whole text."""
    parts = parts_behind_marks(text) if declares_mark(gold) else []
    if not parts:
        return normalized_spaces(text)
    of_gold = parts_behind_marks(gold)
    if len(of_gold) > 1:
        return parts[-1]
    return next(filter(is_answer, parts), parts[0]) if is_answer(of_gold[0]) else parts[0]


def gold_part(gold: str) -> str:
    """The answer in a gold text: behind its last mark, where its last line has one; otherwise all of it."""
    return parts_behind_marks(gold)[-1] if declares_mark(gold) else normalized_spaces(gold)


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}`; None where there is none, or its braces do not close."""
    _, box, rest = text.rpartition(BOX)
    depth = 1
    for position, sign in enumerate(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if not depth:
            return rest[:position].strip()
    return None


def named_answers(text: str) -> list[str]:
    """What the text itself names as its answer, the likeliest first: in the last box, or behind "the answer is" or "Answer:",
    the last of these before the others."""
    box = boxed(text)
    if box is not None:
        bare = _TEXT.fullmatch(box)
        return [normalized_spaces(bare[1] if bare else box)]
    named = [text[match.end() :].partition("\n")[0] for match in _ANSWER_IS.finditer(text)]
    return [normalized_spaces(part) for part in reversed(named) if not re.match(r"not\b", part, re.IGNORECASE)]


def likeliest_part(
    text: str, gold: str, is_answer: Callable[[str], bool] = is_no_heading, is_alone: Callable[[str], bool] = lambda line: False
) -> str:
    """The part of a text that is most likely its answer: behind the mark, where the text names it, or the last line; the first
    line where that alone is an answer (`is_alone`), and the last is not."""
    marked = answer_part(text, gold, is_answer) if declares_mark(gold) and _MARK.search(text) else ""
    if marked:
        return marked
    lines = [normalized_spaces(line) for line in _MARK.sub("\n", text).split("\n") if line.strip()]
    lines = [line for line in lines if not _FENCE.fullmatch(line)] or lines
    if lines and is_alone(lines[0]) and not is_alone(lines[-1]):
        lines = lines[:1]
    return next(iter([*named_answers(text), *reversed(lines)]), "")


def words_of(text: str) -> list[str]:
    """Words in small letters, without the punctuation around them."""
    bare = (word.strip(string.punctuation) for word in normalized_spaces(text).casefold().split())
    return [word for word in bare if word]


def marked_number_part(text: str) -> str | None:
    """The first line behind a mark that begins with a number; None where there is none. Numbered headings begin with 1."""
    heading = 0
    for part in parts_behind_marks(text):
        begin = normalized_numbers(part)
        first = next(iter(numbers_in(begin)), None)
        if first is None or not _NUMBER_FOLLOWS.fullmatch(begin[: first.start()]):
            continue
        enumerated = _ENUMERATED.match(begin)
        if not enumerated or int(enumerated[1]) != heading + 1:
            return part
        heading += 1
    return None


def gold_number(gold: str) -> Number | None:
    """The number that a gold answer is: behind its mark, in its box, behind "the answer is", or all of it. None where there
    are several, or more than a number and its unit."""
    marked = marked_number_part(gold)
    parts = [*named_answers(gold)[:1], gold] if marked is None else [marked]
    return next((number for part in parts if (number := sole_number(part)) is not None), None)


def strict_number(text: str, gold: str) -> Number | None:
    """The number right behind the mark, where the gold answer has it there; otherwise also the last one, or the one that the
    text names, where the gold answer names its own."""
    marked = marked_number_part(text)
    if marked is not None:
        return leading_number(marked, computed=False)
    if marked_number_part(gold) is not None:
        return None
    return likeliest_number(text) if named_answers(gold) else last_number(text)


def likeliest_number(text: str) -> Number | None:
    """The number behind the mark, else where the text says its answer, else the last one."""
    marked = marked_number_part(text)
    parts = named_answers(text) if marked is None else [marked]
    for part in parts:
        if numbers_in(normalized_numbers(part)):
            return leading_number(part)
    return last_number(text)


def normalized_spaces(text: str) -> str:
    """Without line breaks, and with one way to write accents: tokenizers change it."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class MarkedScorer(Scorer):
    """For a task whose completions end with `#### answer` while `task.answer` is the bare answer: gold answers get the mark, so
    that texts are compared behind it."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(
            lambda prediction, gold: scorer.strict(prediction, self._marked(gold)),
            lambda prediction, gold: scorer.flexible(prediction, self._marked(gold)),
        )
        self._scorer = scorer

    @staticmethod
    def _marked(gold: str) -> str:
        return f"{MARK} {gold.strip()}" if gold.strip() and "\n" not in gold.strip() and not declares_mark(gold) else gold

    def verdicts(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[Verdict]:
        return self._scorer.verdicts([(prediction, self._marked(gold)) for prediction, gold in pairs])

    def gold_faults(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[str | None]:
        return self._scorer.gold_faults([(completion, self._marked(gold)) for completion, gold in pairs])

    def as_gold(self, prediction: str, gold: str) -> str:
        return self._scorer.as_gold(prediction, self._marked(gold))
