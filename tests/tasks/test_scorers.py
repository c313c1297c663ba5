from fractions import Fraction
from typing import Any

import pytest

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Scorer, Task, Verdict
from toolkit.tasks.scorer import answer_part, strict_number
from toolkit.tasks.scorers import SCORERS
from toolkit.tasks.text_scorers import RegexScorer, contains, exact, numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("He pays 3 + 4 = 7.\n#### 72", "72"),
        ("####72.", "72"),
        ("#### 1,000", "1000"),
        ("#### 1,234,567.50", "1234567.5"),
        ("#### $12.50", "12.5"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### .5", "0.5"),
        ("#### 25%", "25"),
        ("#### 25 % of 40", "25"),
        ("#### 12 dollars and 3 cents", None),  # two numbers
        ("####\n72", "72"),
        ("#### 72\n\nQuestion: 3 pens and 4 more?\n#### 7", "72"),  # runaway text does not count
        ("#### 72 #### 7", "72"),
        ("#### unknown\n7", "7"),  # where no number follows, it marks none
        ("####", None),
        ("She has 3 + 4 = 7 pens.", "7"),  # without a mark, the last number
        ("The answer is 72.", "72"),
        ("The answer is $1,000.", "1000"),
        ("3 - 8 = -5", "-5"),
        ("pages 10-12", "12"),
        ("seven", None),
        ("", None),
        ("-", None),
        ("$,.", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    found = strict_number(text, "72")
    assert (found and found.value) == (None if number is None else Fraction(number))


@pytest.mark.parametrize("same", ["1000", "1000.0", "1,000", "$1,000.00", "1000.", "1000 pens", "01000", "+1000"])
def test_a_number_is_right_however_it_is_written(same: str) -> None:
    assert numeric(f"#### {same}", "So 1,000.\n#### 1000") and numeric(f"It is {same}", "1,000.0")


@pytest.mark.parametrize("other", ["#### 1001", "#### -1000", "#### 1000.01", "#### 100", "#### 1000000", "a thousand", ""])
def test_another_number_or_none_is_wrong(other: str) -> None:
    assert not numeric(other, "#### 1000")


def test_without_a_number_to_compare_with_nothing_is_right() -> None:
    assert not numeric("#### none", "#### none")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps. #### acorn  badge \n", "acorn badge"),
        ("#### Mia\n#### Tom", "Mia"),
        ("no mark,\n  two lines", "no mark, two lines"),
        ("####", ""),
    ],
)
def test_the_answer_is_the_rest_of_the_first_marked_line(text: str, part: str) -> None:
    assert answer_part(text, "#### Mia") == part


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("so #### p o", True), ("####  p  o\n#### x", True), ("p o", True), ("#### p O", False), ("p o\n####", False), ("", False)],
)
def test_exact_compares_final_parts_apart_from_white_space(prediction: str, right: bool) -> None:
    assert exact(prediction, "#### p o") is right


@pytest.mark.parametrize(("prediction", "right"), [("It is PARIS, I think.", True), ("Par is", False), ("", False)])
def test_contains_looks_everywhere_and_ignores_case(prediction: str, right: bool) -> None:
    assert contains(prediction, "#### Paris") is right


@pytest.mark.parametrize("name", ["exact", "numeric", "math", "contains", "f1"])
def test_every_scorer_accepts_the_gold_answer_itself(name: str) -> None:
    gold = "2 + 2 = <<2+2=4>>4, and 4 * 300 = 1,200.\n#### 1,200"
    found = SCORERS[name].verdicts([(gold, gold), ("#### 1,201", gold)])
    assert [(verdict.strict, verdict.flexible) for verdict in found] == [(True, True), (False, False)]


# Strict asks for the format that the gold answer has.
@pytest.mark.parametrize(
    ("prediction", "strict", "flexible"),
    [
        ("#### 72", True, True),
        ("So it is 72.", False, True),
        ("The answer is 72. There were 3 friends.", False, True),
        ("\\boxed{72} of 100", False, True),
        ("#### 72\n\nQ: and 8?\n#### 8", True, True),
        ("It is 72.\n####", False, True),
        ("#### 8, not 72", False, False),
        ("72 or 8", False, False),
        ("", False, False),
    ],
)
def test_a_number_without_its_mark_is_right_by_flexible_extraction_alone(prediction: str, strict: bool, flexible: bool) -> None:
    assert SCORERS["numeric"].verdicts([(prediction, "#### 72")]) == [Verdict(strict, flexible)]


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("exact", "The answer is **Paris**."), ("exact", "I think.\n\nparis!"), ("contains", "It is (New) “Paris”, said he")],
)
def test_flexible_extraction_of_text_looks_past_case_and_punctuation(name: str, prediction: str) -> None:
    gold = "new paris" if name == "contains" else "#### Paris"
    prediction = prediction.replace("“", '"').replace("”", '"')
    assert SCORERS[name].verdicts([(prediction, gold)]) == [Verdict(False, True)]
    assert SCORERS[name].verdicts([("Parish", gold)]) == [Verdict(False, False)]


def test_what_a_scorer_raises_stays_with_its_item() -> None:
    scorer = Scorer(lambda prediction, gold: 1 / int(gold) > 0, lambda prediction, gold: False)
    assert scorer.verdicts([("", "1"), ("", "0"), ("", "2")]) == [
        Verdict(True, True),
        Verdict(False, False, "ZeroDivisionError: division by zero"),
        Verdict(True, True),
    ]


PATTERN, LABELS = r"Answer: ([^\n.]+)", ["very negative", "negative", "neutral", "1", "C", "C++", "not spam", "spam", "-1"]
GOLDS = [
    *(
        "72",
        "#### 72",
        "So 48 + 24 = 72.\n#### 72",
        "-5",
        "1,234.5",
        "$3.50",
        "25%",
        "3/4",
        "1 1/2",
        "½",
        "1e-05",
        "2.5 × 10³",
        "6/2",
    ),
    *(
        "12 or 13",
        "3,5,7",
        "The answer is 72.",
        "The answer is 72.\nThat is 3 times 24.",
        "The answer is not 5",
        "**72**",
        "10 cm",
    ),
    *(
        r"\boxed{72}",
        r"so \boxed{\frac{1}{2}} of 3",
        "x^2+1",
        r"\boxed{10\text{ cm}}",
        "#### **72** clips",
        "1. Berlin",
        "#### 2. Berlin",
    ),
    *("Paris", "#### Paris", "a #### b", "#### Step 1\nadd\n#### Paris", "#### Steps\n1. Unplug it.", "Intro\n#### Steps\nMore."),
    *("one\ntwo\n\nthree", "  spaced   out  ", "the", "A", "B", "(C)", "D. Oslo", "#### B", "Not B", "very negative", "negative"),
    *(
        "Not spam",
        "C++",
        "-1",
        "spam.",
        "Answer: Paris",
        "Answer: A. Answer: B",
        "Yes, no and 3",
        "!!!",
        "+",
        "北京",
        "#### 北京",
    ),
    *("####", "I do not know. ####", "#### a\n####"),
]


def scorer_named(name: str) -> Scorer:
    keys = {"regex": {"pattern": PATTERN}, "label": {"labels": LABELS}}.get(name, {})
    return Task(TaskRecipe(prompt="{q}", completion="{a}", scorer=name, **keys)).scorer


# The law of every scorer: a gold answer is strictly right, or it is refused before anything is judged by it.
@pytest.mark.parametrize("name", ["exact", "numeric", "contains", "f1", "regex", "choice", "label", "math"])
def test_a_gold_answer_is_strictly_right_or_refused(name: str) -> None:
    scorer = scorer_named(name)
    faults = scorer.gold_faults([(gold, gold) for gold in GOLDS])
    verdicts = scorer.verdicts([(gold, gold) for gold in GOLDS])
    for gold, fault, verdict in zip(GOLDS, faults, verdicts, strict=True):
        assert verdict.error is None
        assert (verdict.strict and verdict.flexible) or fault, gold
    accepted = {gold for gold, fault in zip(GOLDS, faults, strict=True) if not fault}
    assert accepted >= USED[name] and not accepted & UNUSED[name]


USED = {
    "exact": {*GOLDS[:-3]},
    "numeric": {
        *GOLDS[:13],
        "The answer is 72.",
        "The answer is 72.\nThat is 3 times 24.",
        "**72**",
        "#### **72** clips",
        "10 cm",
    },
    "contains": {"Paris", "one\ntwo\n\nthree", "北京", "!!!"},
    "f1": {"Paris", "the", "A", "one\ntwo\n\nthree", "北京"},
    "regex": {"Answer: Paris", "Answer: A. Answer: B"},
    "choice": {"A", "B", "(C)", "D. Oslo", "#### B"},
    "label": {"very negative", "negative", "Not spam", "C++", "-1", "spam."},
    "math": {"x^2+1", "72", r"\boxed{72}", r"so \boxed{\frac{1}{2}} of 3"},
}
UNUSED = {
    "exact": {"####", "I do not know. ####"},
    "numeric": {"12 or 13", "3,5,7", "x^2+1", "Paris", "####"},
    "contains": {"####"},
    "f1": {"####", "!!!"},
    "regex": {"####"},
    "choice": {"Paris", "Not B", "####"},
    "label": {"Paris", "Not B", "####"},
    "math": {"####"},
}


# Where completions have a mark and `task.answer` is the bare answer, the completion is still right.
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("exact", "Mia"),
        ("contains", "Mia"),
        ("f1", "Mia"),
        ("numeric", "72"),
        ("choice", "B"),
        ("label", "very negative"),
        ("math", "x^2"),
    ],
)
def test_the_completions_template_says_where_the_mark_stands(name: str, answer: str) -> None:
    keys = {"labels": LABELS} if name == "label" else {}
    scorer = Task(TaskRecipe(prompt="{q}", completion="{why}\n#### {a}", answer="{a}", scorer=name, **keys)).scorer
    found = scorer.verdicts([(f"Because of A and 3.\n#### {answer}", answer)])
    assert found[0].strict and scorer.strict(f"Because of A and 3.\n#### {answer}", answer)
    assert scorer.gold_faults([("", answer)]) == [None]


# Every x may be taken alone or with the next: as many ways as Fibonacci's numbers, none of which ends with the text.
def test_a_pattern_that_backtracks_without_end_is_given_up_and_told() -> None:
    scorer, endless = RegexScorer("^((?:x|xx)+)$", seconds=0.3), "x" * 200 + "!"
    given_up, other = scorer.verdicts([(endless, "x"), ("xx", "xx")])
    assert given_up == Verdict(False, False, note="the pattern did not end within 0.3 s")
    assert other == Verdict(True, True)
    assert scorer.strict(endless, "x") is False
    assert "the pattern did not end within 0.3 s" in str(scorer.gold_faults([("", endless)]))


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"(?i)answer:\s*(\w+)", "ANSWER:  Mia", "Mia"),
        (r"(?:A: (\d+)|B: (\d+))", "B: 7", "7"),
        (r"\[\[(?P<letter>[A-D])\]\]", "so [[C]]", "C"),
        (r"([a-z]+)$", "one two", "two"),
        (r"(?<=: )(\S+)", "is: 5", "5"),
    ],
)
def test_patterns_mean_what_they_mean_to_python(pattern: str, text: str, found: str) -> None:
    assert RegexScorer(pattern).verdicts([(text, found)]) == [Verdict(True, True)]


def flexibly(scorer: str, gold: str, answer: str, **keys: Any) -> bool:
    verdict = Task(TaskRecipe(prompt="{q}", completion="{a}", scorer=scorer, **keys)).scorer.verdicts([(answer, gold)])[0]
    assert not verdict.strict
    return verdict.flexible


# Many models answer first and explain then.
def test_an_answer_that_stands_alone_in_the_first_line_is_meant() -> None:
    labels = {"labels": ["positive", "negative"]}
    assert flexibly("choice", "B", "B\n\nExplanation: A is wrong, since it freezes.")
    assert flexibly("choice", "B", "**(B)**\nC would be too hot.")
    assert not flexibly("choice", "B", "B\nThinking again, the answer is A.")
    assert flexibly("label", "positive", "Positive.\n\nUnlike negative reviews it ends well.", **labels)
    assert not flexibly("label", "positive", "positive\nnegative", **labels)


def test_fences_and_text_commands_are_no_part_of_an_answer() -> None:
    assert flexibly("exact", "Paris", "```\nParis\n```")
    assert flexibly("label", "positive", "```text\npositive\n```", labels=["positive", "negative"])
    assert flexibly("exact", "Paris", r"It is \boxed{\text{Paris}}.")


def test_letters_are_found_between_other_scripts() -> None:
    assert flexibly("choice", "B", "答案是B。")
    assert flexibly("choice", "B", "B选项正确")


def test_a_label_is_none_with_a_sign_of_its_name_behind_it() -> None:
    assert not flexibly("label", "C", "It is C++.", labels=["C", "Java"])
    assert flexibly("label", "C", "It is C.", labels=["C", "Java"])


# Some tokenizers compose accents, so that a model could never write the gold answer as the file has it.
@pytest.mark.parametrize(
    ("scorer", "keys"), [("exact", {}), ("contains", {}), ("f1", {}), ("label", {"labels": ["cafe\u0301", "the\u0301"]})]
)
@pytest.mark.parametrize("gold", ["cafe\u0301", "caf\u00e9"])
def test_accents_are_compared_however_they_are_written(scorer: str, keys: dict[str, Any], gold: str) -> None:
    judge = Task(TaskRecipe(prompt="{q}", completion="{a}", scorer=scorer, **keys)).scorer
    assert [verdict.strict for verdict in judge.verdicts([("cafe\u0301", gold), ("caf\u00e9", gold), ("cafe", gold)])] == [
        True,
        True,
        False,
    ]
