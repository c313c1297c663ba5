"""Which training text is also in the test set: the same question word for word, or 13 words in a row of one.

    test      "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    training  "In spring Natalia sold clips to 48 of her friends in April, and then she sold …"       # 15 words in a row

13 words are the measure of GPT-3 (arXiv 2005.14165, appendix C). Only questions are compared, without the words of the
prompt template: those stand in every one of them.
"""

from collections.abc import Iterable
from typing import Literal

from toolkit.tasks.example import Example
from toolkit.tasks.question_words import words_in
from toolkit.tasks.task import Split, Task

N = 13
Overlap = Literal["exact", "partial"]


def question_of(task: Task, example: Example) -> str:
    """The text of the last message, without the fixed words of the task's prompt template."""
    return task.question_of(example)


class HeldOut:
    """Questions that must not be in the training data."""

    def __init__(self, questions: Iterable[str]) -> None:
        words = [words_in(question) for question in questions]
        self._whole = set(words)
        self._parts = {part for question in words for part in _parts(question)}

    def overlap(self, text: str) -> Overlap | None:
        """`exact`: the same words as a whole question (case and punctuation apart); `partial`: 13 words in a row of one."""
        words = words_in(text)
        if words in self._whole:
            return "exact"
        return "partial" if any(part in self._parts for part in _parts(words)) else None


def repeated_questions(task: Task, split: Split) -> tuple[int, int]:
    """How many training examples have a question of the split, word for word; and how many training examples there are."""
    questions = {words_in(question_of(task, example)) for example in task.examples(split)}
    train = task.examples("train")
    return sum(words_in(question_of(task, example)) in questions for example in train), len(train)


def _parts(words: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (words[start : start + N] for start in range(len(words) - N + 1))
