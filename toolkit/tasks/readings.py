"""Where in a text its answer stands.

"He pays 3 + 4 = 7.\\n#### 7"      strictly: what follows the first #### up to the end of its line
"… so it is \\boxed{7}."           flexibly also: the box, what follows "answer is", else the last line or number
"""

import re
import string
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")  # the - of 10-12 is no sign
ANSWER_IS = re.compile(r"\banswer(?:\s+is)?\s*:?[\s*]*(?=\S)(.+)", re.IGNORECASE)
MARK = "####"
BOX = "\\boxed{"


def final_part(text: str) -> str:
    """What follows the first `####` up to the end of its line; the whole text where there is no mark."""
    _, mark, rest = text.partition(MARK)
    return " ".join((rest.strip().partition("\n")[0] if mark else text).split())


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}`; None where there is none, or its braces do not close."""
    _, box, rest = text.rpartition(BOX)
    depth = 1
    for position, sign in enumerate(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if not depth:
            return rest[:position].strip()
    return None


def said(text: str) -> str | None:
    """What the text calls its answer: in the last box, or behind the last "answer is"; None where it does not."""
    found = boxed(text)
    if found is None and (named := ANSWER_IS.findall(text)):
        found = named[-1]
    return None if found is None else " ".join(found.split())


def likeliest_part(text: str) -> str:
    """Where an answer most likely stands: behind the mark, where the text says so, or in the last line."""
    if MARK in text and final_part(text):
        return final_part(text)
    found = said(text)
    lines = (" ".join(line.split()) for line in reversed(text.replace(MARK, "").split("\n")) if line.strip())
    return next(lines, "") if found is None else found


def words_of(text: str) -> list[str]:
    """Words in small letters, without the punctuation around them."""
    bare = (word.strip(string.punctuation) for word in text.casefold().split())
    return [word for word in bare if word]


def number_in(text: str) -> Decimal | None:
    """The number after `####`, else the last one in the text; None where there is none."""
    return first_number(final_part(text)) if MARK in text else last_number(text)


def likeliest_number(text: str) -> Decimal | None:
    """The number behind the mark, else where the text says its answer, else the last one."""
    marked = number_in(text) if MARK in text else None
    if marked is None and MARK not in text and (found := said(text)) is not None:
        marked = first_number(found)
    return last_number(text) if marked is None else marked


def first_number(text: str) -> Decimal | None:
    return _number(_numbers(text)[:1])


def last_number(text: str) -> Decimal | None:
    return _number(_numbers(text)[-1:])


def _numbers(text: str) -> list[str]:
    return NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))


def _number(found: list[str]) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$,]", "", found[0])) if found else None
    except InvalidOperation:
        return None
