"""What two questions are compared by: their words, without the fixed ones of the task's prompt template."""

import re
from string import Formatter

WORD = re.compile(r"\w+")


def question_without_template(text: str, template: str) -> str:
    """A prompt without the fixed words of the `template` that it was made by: those stand in every one."""
    for literal, *_ in Formatter().parse(template):
        if literal.strip():
            text = text.replace(literal.strip(), " ")
    return text


def words_in(text: str) -> tuple[str, ...]:
    """The words of a question, case and punctuation apart; signs alone are compared as they stand."""
    return tuple(WORD.findall(text.casefold())) or (text.strip(),)
