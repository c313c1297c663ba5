"""Where an answer stands."""

import pytest

from toolkit.tasks.scorer import answer_part, declares_mark, gold_part, likeliest_part, named_answers, parts_behind_marks


@pytest.mark.parametrize("gold", ["#### Mia", "reasons. #### Mia", "reasons\n#### Mia\n", "####\nMia", "I do not know. ####"])
def test_the_gold_answers_last_line_says_that_answers_stand_behind_a_mark(gold: str) -> None:
    assert declares_mark(gold)


@pytest.mark.parametrize("gold", ["Mia", "#### Steps\n1. Unplug it.", "Intro\n#### Steps\nmore", "##### Mia", "### Mia", ""])
def test_a_heading_is_no_mark(gold: str) -> None:
    assert not declares_mark(gold) and gold_part(gold) == " ".join(gold.split())


@pytest.mark.parametrize("text", ["#### Tom", "no mark", "#### Step 1\nx\n#### Tom", "#### a #### b", "####"])
def test_without_a_mark_in_the_gold_answer_all_of_a_text_is_its_answer(text: str) -> None:
    assert answer_part(text, "Mia") == " ".join(text.split())


def test_marks_end_with_their_line_or_the_next_mark() -> None:
    assert parts_behind_marks("a #### b  c #### d\n####\ne\n##### f\n####") == ["b c", "d", "e", ""]


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("The answer is 72.", ["72."]),
        ("**Answer:** Paris", ["Paris"]),
        ("**Answer**: Paris", ["Paris"]),
        ("## Final Answer\n\nParis", ["Paris"]),
        ("Answer B", ["B"]),
        ("The answer to question 3 (of 5) is B", ["B"]),
        ("The answer would be 5", ["5"]),
        ("The answer is 4. No, the answer is 5.", ["5.", "4. No, the answer is 5."]),
        (r"The answer is 4: \boxed{5}", ["5"]),
        ("My first answer was wrong", []),
        ("Any 'answer' will do", []),
        ("I cannot answer that.", []),
        ("The answer is not 4", []),
        ("What was the answer?", []),
        ("The answers differ: 3", []),
    ],
)
def test_a_text_names_its_answer_in_a_box_or_in_so_many_words(text: str, answers: list[str]) -> None:
    assert named_answers(text) == answers


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("I think.\n\nMia!", "Mia!"),
        ("#### Mia", "Mia"),
        ("#### Step 1\nlook\n#### Mia", "Mia"),
        ("Answer: Mia\nGoodbye", "Mia"),
        ("It is Mia\n####", "It is Mia"),
        ("", ""),
    ],
)
def test_the_likeliest_part(text: str, part: str) -> None:
    assert likeliest_part(text, "#### Tom") == part
