import json
from pathlib import Path
from typing import Any

import pytest
from conftest import raises

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task

MMLU = {"question": "Where is the Holmenkollen?", "choices": ["Rome", "Oslo", "Bonn"], "answer": 1}
ARC = {"question": "Where?", "choices": {"text": ["Rome", "Oslo", "Bonn"], "label": ["1", "2", "3"]}, "answerKey": "2"}


def task_of(folder: Path, row: dict[str, Any], *more: dict[str, Any], **recipe: Any) -> Task:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (row, *more)))
    return Task(TaskRecipe(name="multiple_choice", train=str(path), test=str(path), **recipe))


@pytest.mark.parametrize("row", [MMLU, MMLU | {"answer": "B"}, MMLU | {"answer": "Oslo"}, ARC, ARC | {"answerKey": "2"}])
def test_published_forms_become_lettered_questions(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = task_of(tmp_path, row).examples("test")
    assert example.messages[0]["content"] == f"{row['question']}\nA. Rome\nB. Oslo\nC. Bonn\nAnswer with the letter."
    assert (example.completion, example.gold) == ("B", "B")
    assert (example.choices, example.right, example.cloze) == (("Rome", "Oslo", "Bonn"), 1, row["question"])
    assert example.as_cloze().completion == "Oslo"


def test_another_column_and_templates_serve(tmp_path: Path) -> None:
    row = {"ctx": "He", "endings": ["sings.", "stone."], "label": 0}
    keys = {"choices": "endings", "prompt": "{ctx} …\n{options}", "cloze": "{ctx}", "completion": "{letter}. {choice}"}
    (example,) = task_of(tmp_path, row, **keys).examples("test")
    assert (example.completion, example.gold, example.cloze) == ("A. sings.", "A", "He")


@pytest.mark.parametrize(
    ("row", "code", "named"),
    [
        (MMLU | {"choices": []}, "choices.no-list", "not []"),
        (MMLU | {"choices": ["Rome"]}, "choices.no-list", "not ['Rome']"),
        (MMLU | {"choices": "Rome"}, "choices.no-list", "not 'Rome'"),
        (MMLU | {"choices": ["Rome", " ", "Bonn"]}, "choices.empty", "choice 2 of `choices`"),
        (MMLU | {"choices": ["x"] * 27}, "choices.too-many", "27"),
        (MMLU | {"answer": "D"}, "choices.unknown-gold", "`answer` is 'D', and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": 3}, "choices.unknown-gold", "`answer` is 3, and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": -1}, "choices.unknown-gold", "`answer` is -1, and the choices are A, B, C (or 0 to 2)."),
        (MMLU | {"answer": True}, "choices.unknown-gold", "`answer` is True, and the choices are A, B, C (or 0 to 2)."),
        (ARC | {"answerKey": "4"}, "choices.unknown-gold", "`answerKey` is '4', and the choices are 1, 2, 3 (or 0 to 2)."),
        (
            {"question": "?", "choices": ["a", "b"]},
            "choices.no-gold",
            "answer, answerKey, answer_key",
        ),
    ],
)
def test_choices_that_are_none_are_told_with_the_line(tmp_path: Path, row: dict[str, Any], code: str, named: str) -> None:
    with raises(code, "rows.jsonl, line 1: ", named):
        task_of(tmp_path, row).examples("test")


TWO, FOUR = ["Oslo", "Rome"], ["Oslo", "Rome", "Bonn", "Bern"]
OPTIONS = {"opa": "Oslo", "opb": "Rome", "opc": "Bonn", "opd": "Bern"}


def rights(folder: Path, rows: list[dict[str, Any]], **recipe: Any) -> list[str]:
    """The right choices' texts."""
    return [example.choices[example.right] for example in task_of(folder, *rows, **recipe).examples("test")]


def rows_with(column: str, values: list[Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    return [base | {column: value} for value in values]


@pytest.mark.parametrize(
    ("base", "column", "values", "right"),
    [
        ({"question": "?", "options": ["A)21", "B)22", "C)23"], "rationale": "…"}, "correct", ["A", "C"], ["21", "23"]),  # AQuA
        ({"question": "?", **OPTIONS, "exp": "…"}, "cop", [0, 3], ["Oslo", "Bern"]),  # MedMCQA on the hub
        ({"question": "?", **OPTIONS, "exp": "…"}, "cop", [1, 4], ["Oslo", "Bern"]),  # and in its own files
        ({"sentence": "_ ?", "option1": "Ann", "option2": "Bob"}, "answer", ["1", "2"], ["Ann", "Bob"]),  # WinoGrande
        ({"sentence": "_ ?", "option1": "Ann", "option2": "Bob"}, "answer", ["1", "1"], ["Ann", "Ann"]),
        ({"goal": "?", "sol1": "Push.", "sol2": "Pull."}, "label", [1, 0], ["Pull.", "Push."]),  # PIQA
        ({"goal": "?", "sol1": "Push.", "sol2": "Pull."}, "label", ["1"], ["Pull."]),
        ({"ctx": "?", "endings": FOUR, "activity_label": "x"}, "label", ["1", "2"], ["Rome", "Bonn"]),  # HellaSwag
        ({"question": "?", "choices": FOUR, "subject": "x"}, "answer", [1, 2], ["Rome", "Bonn"]),  # MMLU
        ({"question": "?", "options": {"A": "x", "B": "y", "E": None}, "answer": "y"}, "answer_idx", ["B"], ["y"]),  # MedQA
        ({"question_stem": "?", "choices": {"text": TWO, "label": ["A", "B"]}}, "answerKey", ["B"], ["Rome"]),  # OpenBookQA
        ({"question": "?", "article": "…", "options": FOUR}, "answer", ["D"], ["Bern"]),  # RACE
    ],
)  # fmt: skip
def test_published_columns_are_known(
    tmp_path: Path, base: dict[str, Any], column: str, values: list[Any], right: list[str]
) -> None:
    assert rights(tmp_path, rows_with(column, values, base)) == right
    (question, *_) = task_of(tmp_path, *rows_with(column, values, base)).examples("test")
    assert "?" in question.messages[0]["content"].splitlines()[0]


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (["Rome", "oslo", " Bern "], ["Rome", "Oslo", "Bern"]),
        (["a", "(B)", "C.", "D)"], FOUR),
        ([1, 2, 3, 4], FOUR),
        (["1", "4"], ["Oslo", "Bern"]),
        (["0", "3"], ["Oslo", "Bern"]),
        ([0.0, 3.0], ["Oslo", "Bern"]),
        (["1.0", "4.0", "2.0"], ["Oslo", "Bern", "Rome"]),
    ],
)
def test_the_right_choice_is_named_by_letter_text_or_number(tmp_path: Path, values: list[Any], right: list[str]) -> None:
    assert rights(tmp_path, rows_with("target", values, {"question": "?", "choices": FOUR})) == right


# The silent error of this kind: numbers that happen to be in range either way.
@pytest.mark.parametrize("values", [["1", "2"], ["2", "3", "3"], ["1", "1.0"], [1, 2]])
def test_numbers_that_could_count_from_0_or_1_are_refused_with_the_key(tmp_path: Path, values: list[Any]) -> None:
    rows = rows_with("label", values, {"question": "?", "choices": FOUR})
    with raises("choices.ambiguous", "`index_from_0` or `index_from_1`"):
        task_of(tmp_path, *rows).examples("test")
    for first, form in enumerate(("index_from_0", "index_from_1")):
        expected = [FOUR[int(float(value)) - first] for value in values]
        assert rights(tmp_path, rows, label_format=form) == expected


# "3" among the choices 2, 3, 4 is one of them, or the third.
def test_numbers_that_are_choices_themselves_are_told_from_positions(tmp_path: Path) -> None:
    base = {"question": "?", "choices": ["20", "3", "4"]}
    assert rights(tmp_path, rows_with("answer", ["20", "4", "3"], base)) == ["20", "4", "3"]
    with raises("choices.ambiguous", "`answer`", "task.label_format"):
        task_of(tmp_path, *rows_with("answer", ["2", "3"], base | {"choices": ["3", "2", "1"]})).examples("test")
    assert rights(tmp_path, rows_with("answer", ["2", "3"], base | {"choices": ["3", "2", "1"]}), label_format="text") == [
        "2",
        "3",
    ]


def test_the_column_that_names_choices_is_found_among_others(tmp_path: Path) -> None:
    explained = [{"question": "?", "choices": FOUR, "answer": "because of it", "label": n} for n in range(4)]
    assert rights(tmp_path, explained) == FOUR
    twice = [{"question": "?", "choices": FOUR, "answer": FOUR[n], "label": "ABCD"[n]} for n in range(4)]
    assert rights(tmp_path, twice) == FOUR


def test_columns_that_contradict_each_other_are_refused_until_one_is_named(tmp_path: Path) -> None:
    rows = [{"question": "?", "choices": FOUR, "answer": "A", "label": "B"}]
    with raises("choices.several-golds", "`answer`, `label`"):
        task_of(tmp_path, *rows).examples("test")
    assert rights(tmp_path, rows, label="label") == ["Rome"]


def test_choices_may_stand_in_columns_of_any_name(tmp_path: Path) -> None:
    rows = [{"q": "?", "x": "Oslo", "y": 7, "z": True, "best": name} for name in ("x?", "7", "true", "C")]
    keys = {"choices": ["x", "y", "z"], "label": "best", "prompt": "{q}\n{options}", "cloze": "{q}"}
    with raises("choices.unknown-gold", "line 1: `best` is 'x?'", "A, B, C"):
        task_of(tmp_path, *rows, **keys).examples("test")
    assert rights(tmp_path, rows[1:3], **keys) == ["7", "true"]
    with raises("data.no-field", "`w`"):
        task_of(tmp_path, rows[1], **keys | {"choices": ["x", "w"]}).examples("test")


@pytest.mark.parametrize(
    ("given", "answer", "texts"),
    [
        (["A)21", "B)22"], "B", ["21", "22"]),
        (["(A) 21", "(B) 22"], "B", ["21", "22"]),
        (["a. Oslo", "b. Rome"], "B", ["Oslo", "Rome"]),
        (["A: Oslo", "B: Rome"], "B: Rome", ["Oslo", "Rome"]),
        (["1) Oslo", "2) Rome"], "2", ["Oslo", "Rome"]),
        (["1.5", "2.5"], "B", ["1.5", "2.5"]),  # no letters of their own
        (["A. Smith", "C. Darwin"], "B", ["A. Smith", "C. Darwin"]),
        (["A)21", "22"], "B", ["A)21", "22"]),
        (["Vitamin A", "Vitamin B"], "B", ["Vitamin A", "Vitamin B"]),
    ],
)
def test_choices_lose_the_letters_that_all_of_them_begin_with(
    tmp_path: Path, given: list[str], answer: str, texts: list[str]
) -> None:
    (example,) = task_of(tmp_path, {"question": "?", "choices": given, "answer": answer}).examples("test")
    assert list(example.choices) == texts and example.right == 1


def test_letters_of_their_own_may_stand_in_another_order(tmp_path: Path) -> None:
    assert rights(tmp_path, [{"question": "?", "choices": ["B) Rome", "A) Oslo"], "answer": "A"}]) == ["Oslo"]


def test_what_is_no_choice_is_one_bad_line_among_good_ones(tmp_path: Path) -> None:
    rows = [MMLU, MMLU | {"answer": None}, MMLU | {"choices": ["x", None, "y"]}, MMLU | {"answer": 0}, MMLU | {"answer": 7}]
    with raises("data.bad-lines") as caught:
        task_of(tmp_path, *rows).examples("test")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "rows.jsonl, line 2: `answer` is None, and the choices are A, B, C (or 0 to 2).\n"
        "rows.jsonl, line 3: choice 2 of `choices`: it is null.\n"
        "rows.jsonl, line 5: `answer` is 7, and the choices are A, B, C (or 0 to 2).\n"
        "3 of 5 lines in rows.jsonl cannot be used. Mend them, or leave them out with `task.on_bad_lines: skip`."
    )


SCIQ = {"distractor1": "Rome", "distractor2": "Bonn", "distractor3": "Bern", "correct_answer": "Oslo", "support": "…"}
GPQA = {"Correct Answer": "Oslo", "Incorrect Answer 1": "Rome", "Incorrect Answer 2": "Bonn", "Incorrect Answer 3": "2"}
TRUTHFUL = {"mc1_targets": {"choices": ["Oslo", "Rome", "Bonn"], "labels": [1, 0, 0]}}
OWN = {"good": "Oslo", "bad": "Rome"}


# Else a model would learn, and be measured by, a letter that is always the same.
@pytest.mark.parametrize(
    ("row", "question", "recipe"),
    [
        (SCIQ, "question", {}),
        (GPQA, "Question", {}),
        (TRUTHFUL, "question", {}),
        (OWN, "question", {"choices": ["good", "bad"], "label": "good"}),
    ],
)
def test_a_place_that_says_what_is_right_is_drawn_for_each_question(
    tmp_path: Path, row: dict[str, Any], question: str, recipe: dict[str, Any]
) -> None:
    rows = [{question: f"Which is number {n}?"} | row for n in range(40)]
    examples = task_of(tmp_path, *rows, **recipe).examples("test")
    assert {e.choices[e.right] for e in examples} == {"Oslo"}
    assert {e.right for e in examples} == set(range(len(examples[0].choices)))
    assert all("ABCD"[e.right] == e.gold and f"{e.gold}. Oslo" in e.messages[0]["content"] for e in examples)
    again = task_of(tmp_path, *reversed(rows), **recipe).examples("test")
    assert [e.choices for e in reversed(again)] == [e.choices for e in examples]  # whatever stands around a question


def test_marks_are_of_one_choice(tmp_path: Path) -> None:
    several = {"question": "?", "mc2_targets": {"choices": ["Oslo", "Rome"], "labels": [1, 1]}}
    with raises("choices.marks", "`mc2_targets` marks 2"):
        task_of(tmp_path, several, choices="mc2_targets").examples("test")


@pytest.mark.parametrize(
    "choices",
    [
        '["Rome", "Oslo", "Bonn"]',  # as tables have lists
        '{"A": "Rome", "B": "Oslo", "C": "Bonn"}',
        [{"text": "Rome", "label": "A"}, {"text": "Oslo", "label": "B"}, {"text": "Bonn", "label": "C"}],
        [{"text": "Rome"}, {"text": "Oslo"}, {"text": "Bonn"}],
    ],
)
def test_choices_are_read_as_tables_and_objects_have_them(tmp_path: Path, choices: Any) -> None:
    (example,) = task_of(tmp_path, MMLU | {"choices": choices, "answer": "B"}).examples("test")
    assert (example.choices, example.right) == (("Rome", "Oslo", "Bonn"), 1)


@pytest.mark.parametrize("choice", [{"id": "A", "content": "Rome"}, ["Rome"]])
def test_a_choice_is_a_text(tmp_path: Path, choice: Any) -> None:
    with raises("choices.no-text", "choice 1 of `choices`"):
        task_of(tmp_path, MMLU | {"choices": [choice, choice]}).examples("test")


def test_a_letter_that_is_always_right_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task_of(tmp_path, *[MMLU | {"answer": 1}] * 24).examples("test")
    assert "B is right in all 24 questions of" in " ".join(capsys.readouterr().out.split())
    task_of(tmp_path, *[MMLU | {"answer": 1}] * 24, MMLU | {"answer": 0}).examples("test")
    assert "is right in all" not in capsys.readouterr().out
