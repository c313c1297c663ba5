"""What training may not see: a question word for word, or 13 words in a row of one; the template's words do not count."""

from pathlib import Path

import pytest

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Example, HeldOut, Task, question_of

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (LONG, "exact"),
        ("NATALIA sold clips to 48 of her friends in April -- and then she sold half as many clips in May", "exact"),
        ("It is known: " + LONG + " How many?", "partial"),
        (" ".join(LONG.split()[:13]), "partial"),
        (" ".join(LONG.split()[:12]), None),
        (LONG.replace("48", "49").replace("half", "twice"), None),  # no 13 words in a row without a change
        ("2 + 2?", "exact"),
        ("What is 2 + 2?", None),
        ("∑", "exact"),
        ("∏", None),
        ("", None),
    ],
)
def test_a_text_overlaps_by_the_whole_question_or_13_words_in_a_row(text: str, kind: str | None) -> None:
    assert HeldOut([LONG, "2 + 2", "∑"]).overlap(text) == kind


def asking(text: str) -> Example:
    return Example(({"role": "system", "content": "Be brief."}, {"role": "user", "content": text}), "1", "1")


def test_the_words_of_the_template_are_no_overlap() -> None:
    task = Task(TaskRecipe(name="gsm8k"))  # its prompt ends: Think step by step, then write #### and the number.
    template = str(task.preset.prompt)
    ours, theirs = (asking(template.format(question=text)) for text in ("Ann has 3 hens. How many?", "Bo has 4 cows. How many?"))
    assert question_of(task, ours).strip() == "Ann has 3 hens. How many?"
    assert HeldOut([ours.messages[-1]["content"]]).overlap(theirs.messages[-1]["content"]) is None  # only 11 words in a row
    longer = asking(template.format(question="And now: of all these, how many?"))
    same_end = asking(template.format(question="Look: of all these, how many?"))
    assert HeldOut([longer.messages[-1]["content"]]).overlap(same_end.messages[-1]["content"]) == "partial"  # the template's
    assert HeldOut([question_of(task, longer)]).overlap(question_of(task, same_end)) is None


def test_of_messages_the_last_one_is_the_question(tmp_path: Path) -> None:
    task = Task(TaskRecipe(messages="messages", train="t.jsonl", test="t.jsonl"))
    assert question_of(task, asking("How many?")) == "How many?"
