"""Laws: what a recipe says of recognised columns is a task whose gold answers are judged right; what is not certain is said; what
cannot be told is asked for."""

import json
from pathlib import Path

import pytest
from conftest import raises

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks.recognition import recognize
from toolkit.tasks.task import Task

TEN = range(10)
FOUND = {  # name: rows, shape, keys of the task, columns that are not used
    "numbers": (
        [{"id": n, "question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in TEN],
        "questions and answers", {"prompt": "{question}", "completion": "{answer}", "scorer": "numeric"}, ("id",),
    ),
    "bare numbers": (
        [{"Question": f"{n}?", "Answer": n} for n in TEN],
        "questions and answers", {"prompt": "{Question}", "completion": "{Answer}", "scorer": "numeric"}, (),
    ),
    "formulas": (
        [{"problem": f"{n} halves?", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."} for n in TEN],
        "questions and answers", {"prompt": "{problem}", "completion": "{solution}", "scorer": "math"}, (),
    ),
    "alpaca": (
        [{"instruction": "Spell.", "input": f"word {n}", "output": f"w {n} x"} for n in TEN],
        "questions and answers", {"prompt": "{instruction}\n\n{input}", "completion": "{output}", "scorer": "exact"}, (),
    ),
    "labels": (
        [{"customer_text": f"Text {n}", "team": ("Billing", "billing ", "shipping", "billing")[n % 4]} for n in range(20)],
        "classification into 2 labels",
        {
            "name": "classification", "prompt": "{customer_text}\nAnswer with one of: {labels}.", "label": "team",
            "labels": ["billing", "shipping"],
        }, (),
    ),
    "choices": (
        [{"question": f"{n}?", "choices": [f"{n}", "no"], "answer": "AB"[n % 2], "subject": "x"} for n in TEN],
        "multiple choice",
        {
            "name": "multiple_choice", "prompt": "{question}\n{options}\nAnswer with the letter.", "cloze": "{question}",
            "choices": "choices", "label": "answer",
        }, ("subject",),
    ),
    "messages": (
        [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in TEN],
        "conversations", {"messages": "messages", "scorer": "exact"}, (),
    ),
    "ShareGPT in a table's cells, with tools": (
        [
            {
                "conversations": json.dumps([{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "Yes."}]),
                "tools": json.dumps([{"name": "look", "parameters": {}}]),
            }
            for n in TEN
        ],
        "conversations with tools", {"messages": "conversations", "scorer": "exact"}, (),
    ),
    "prompt and completion of messages": (
        [
            {"completion": [{"role": "assistant", "content": "Yes."}], "prompt": [{"role": "user", "content": f"{n}?"}]}
            for n in TEN
        ],
        "conversations", {"messages": ["prompt", "completion"], "scorer": "exact"}, (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_people_have_is_a_task_whose_gold_answers_are_right(name: str, tmp_path: Path) -> None:
    rows, shape, keys, unused = FOUND[name]
    found = recognize(rows)
    assert (found.shape, found.task, found.unused) == (shape, keys, unused)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(TaskRecipe(**found.task, train=str(file), test=str(file)))
    examples = task.examples("test")
    assert len(examples) == len(rows)
    assert all(task.score(example.completion, example.gold, example.row) for example in examples)


def test_a_system_prompt_of_its_own_is_one() -> None:
    found = recognize([{"system": "Be brief.", "question": f"{n}?", "answer": "yes it is"} for n in TEN])
    assert found.task["system"] == "{system}" and not found.unused


def test_numbers_are_no_labels_and_many_labels_are_texts() -> None:
    assert recognize([{"text": f"{n}", "label": n % 2} for n in range(40)]).task["scorer"] == "numeric"
    assert recognize([{"text": f"{n}", "label": f"kind {'abcdefghij'[n]}"} for n in TEN]).task["scorer"] == "exact"


def test_long_answers_are_told_to_be_judged_by_words_alone() -> None:
    found = recognize(
        [{"text": f"{n}", "summary": f"A summary of many a word, in which {n} is not the only thing."} for n in TEN]
    )
    assert found.task["scorer"] == "f1" and any("no meaning" in note for note in found.notes)


def test_two_columns_without_a_usual_name_are_a_guess_that_is_told() -> None:
    found = recognize([{"de": f"Wort {n}", "en": f"word {n}"} for n in TEN])
    assert (found.task["prompt"], found.task["completion"]) == ("{de}", "{en}")
    assert any("guess" in note for note in found.notes)


def test_objects_where_others_have_texts_are_told() -> None:
    found = recognize([{"question": {"n": n} if n % 2 else f"{n}?", "answer": "so it is"} for n in TEN])
    assert any("5 of 10" in note and "question" in note for note in found.notes)


def test_of_other_columns_the_user_is_asked_for_templates() -> None:
    rows = [{"a": "1", "b": "2", "c": "3"}]
    with raises("init.columns", "a, b, c"):
        recognize(rows)
    found = recognize(rows, prompt="{a} and {b}?", completion="{c}")
    assert (found.task["prompt"], found.task["completion"], found.question) == ("{a} and {b}?", "{c}", ("a", "b"))
    assert not found.unused


def test_rows_without_columns_are_refused() -> None:
    with raises("init.no-columns"):
        recognize([{}])


def test_a_column_whose_name_begins_anothers_is_not_the_other() -> None:
    rows = [{"a": "1", "answer": "2", "answers": "3"}]
    found = recognize(rows, prompt="{answer}", completion="{answers}")
    assert (found.question, found.unused) == (("answer",), ("a",))
    with raises("init.template", "a, answer, answers"):
        recognize(rows, prompt="{answer")


def test_a_value_without_a_text_is_left_to_the_task_which_knows_its_line(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": float("inf") if n == 3 else n} for n in TEN]
    assert recognize(rows).task["scorer"] == "numeric"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with raises("data.no-text", "line 4", "infinite"):
        Task(TaskRecipe(**recognize(rows).task, train=str(file), test=str(file))).examples("test")


def test_of_two_system_prompts_the_one_that_is_not_read_is_told() -> None:
    rows = [{"system": "Be brief.", "system_prompt": "Be long.", "question": f"{n}?", "answer": "yes it is"} for n in TEN]
    assert recognize(rows).unused == ("system_prompt",)
