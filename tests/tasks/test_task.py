import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import PollardError
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import PRESETS, Example, Task

ROW = {"question": "one or two?", "answer": "two"}


def task_of(folder: Path, rows: list[Any], **recipe: Any) -> Task:
    """A custom task whose train and test are the same file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(path), "test": str(path), "prompt": "{question}", "completion": "{answer}"} | recipe
    return Task(TaskRecipe(**given))


def fault_of(folder: Path, rows: list[Any], **recipe: Any) -> str:
    with pytest.raises(PollardError) as caught:
        task_of(folder, rows, **recipe).examples("test")
    return str(caught.value).replace(f"{folder}/", "")


def numbered(count: int) -> list[dict[str, str]]:
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(count)]


def test_templates_make_examples_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [
        {"q": {"text": "one", "options": ["a", "b"]}, "label": 1},
        {"q": {"text": "{two}", "options": ["c", "d"]}, "label": 2},
    ]
    task = task_of(tmp_path, rows, prompt="{q[text]}: {q[options][0]} {{or}}", completion="It is {label}.", answer="{label}")
    assert task.examples("test") == [
        Example(({"role": "user", "content": "one: a {or}"},), "It is 1.", "1"),
        Example(({"role": "user", "content": "{two}: c {or}"},), "It is 2.", "2"),
    ]


def test_messages_end_with_the_completion(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?", "name": "Mia"},
        {"role": "assistant", "content": "Ho."},
    ]
    (example,) = task_of(tmp_path, [{"chat": messages}], messages="chat", prompt=None, completion=None).examples("test")
    assert example.messages == tuple(messages[:2])
    assert example.completion == example.gold == "Ho." and example.reply == {}


def test_a_conversation_that_cannot_be_used_is_named_with_its_line(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi?"}, {"role": "user", "content": "Hi??"}]
    fault = fault_of(tmp_path, [{"chat": messages}], messages="chat")
    assert fault.startswith("rows.jsonl, line 1: `chat` ends with a message of the user")


def test_a_system_prompt_comes_from_the_recipe_or_from_a_column(tmp_path: Path) -> None:
    rows = [ROW | {"rules": "Be brief."}]
    for system in ("Be brief.", "{rules}"):
        (example,) = task_of(tmp_path, rows, system=system).examples("test")
        assert example.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "one or two?"})


@pytest.mark.parametrize(
    ("row", "recipe", "fault"),
    [
        ({"text": "one"}, {}, "line 2: no field `question`. Fields there: text."),
        ({}, {}, "line 2: no field `question`. Fields there: none."),
        (ROW, {"answer": "{label}"}, "line 1: no field `label`. Fields there: question, answer."),
        (ROW, {"messages": "chat"}, "line 1: no field `chat`. Fields there: question, answer."),
        (ROW | {"answer": None}, {}, "line 2: the field `answer` is null."),
        (ROW | {"answer": " \n"}, {}, "line 2: the completion is empty."),
        (ROW, {"prompt": "{question"}, "line 1: the template '{question' cannot be filled (ValueError: expected '}'"),
        (ROW, {"prompt": "{}"}, "line 1: the template '{}' cannot be filled (ValueError: Format string contains positional"),
        (ROW, {"prompt": "{question.text}"}, "the template '{question.text}' cannot be filled (AttributeError: "),
        (ROW, {"prompt": "{question[text]}"}, "the template '{question[text]}' cannot be filled (TypeError: "),
        (ROW | {"question": {}}, {"prompt": "{question!s:.9}{question[text]}"}, "cannot be filled"),
        (ROW, {"prompt": "{question:d}"}, "): write {column}, and {{ for a brace."),
        (ROW, {"scorer": "numeric"}, "line 1: scorer `numeric` finds nothing to compare with in the answer 'two'."),
        (ROW | {"answer": "I do not know. ####"}, {"scorer": "contains"}, "line 2: scorer `contains` finds nothing"),
    ],
)
def test_a_line_that_does_not_serve_is_named(tmp_path: Path, row: dict[str, Any], recipe: dict[str, str], fault: str) -> None:
    assert fault in fault_of(tmp_path, [ROW, row], **recipe)


@pytest.mark.parametrize("answer", ["12 or 13", "3,5,7", "5:30", "48 + 24 = 72", "2x + 1", "12 dollars and 3 cents"])
def test_a_gold_answer_of_several_numbers_is_refused_with_its_line(tmp_path: Path, answer: str) -> None:
    fault = fault_of(tmp_path, [ROW | {"answer": "5"}, ROW | {"answer": answer}], scorer="numeric")
    assert fault.startswith(
        f"rows.jsonl, line 2: scorer `numeric` finds no single number in the answer {answer!r}: give one number"
    )


@pytest.mark.parametrize("answer", [1e-05, 1e16, 0.1, "3/4", "1 1/2", "$1,000", "72 clips", "#### 72", "6 * 12 = 72 #### 72"])
def test_a_gold_answer_of_one_number_is_accepted_however_it_is_written(tmp_path: Path, answer: Any) -> None:
    assert task_of(tmp_path, [ROW | {"answer": answer}], scorer="numeric").examples("test")


def test_all_lines_that_cannot_be_judged_by_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, [ROW | {"answer": "5" if i == 1 else "five"} for i in range(8)], scorer="numeric")
    assert [line.partition(": ")[0] for line in fault.split("\n")[:-1]] == [f"rows.jsonl, line {i}" for i in (1, 3, 4, 5, 6)]
    assert fault.endswith("… and 2 more")


# Training text need not have an answer that the scorer can read: only what is judged must.
def test_only_test_answers_must_suit_the_scorer(tmp_path: Path) -> None:
    assert task_of(tmp_path, [ROW], scorer="numeric").examples("train")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert fault_of(tmp_path, []) == "rows.jsonl is empty: task custom needs test examples."


@pytest.mark.parametrize("recipe", [{}, {"prompt": "{question}"}, {"completion": "{answer}"}])
def test_a_custom_task_says_what_it_needs(recipe: dict[str, str]) -> None:
    with pytest.raises(
        PollardError, match=r"A custom task needs `task\.prompt` and `task\.completion` .*, or `task\.messages`\."
    ):
        Task(TaskRecipe(**recipe))


@pytest.mark.parametrize("test", [None, "test", "test.pdf"])
def test_data_that_is_not_given_is_asked_for(tmp_path: Path, test: str | None) -> None:
    fault = fault_of(tmp_path, [ROW], test=test)
    assert "Task custom has no test data: give `task.test`, a data file (.jsonl, " in fault
    assert (f"({test!r} is neither)" in fault) is (test is not None)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    assert fault_of(tmp_path, [ROW], test="test.csv").startswith("Cannot read test.csv: there is no such file.")


# Choices are made with dev: it must be the same in every run, and never be trained on.
def test_dev_is_carved_from_train_once_and_for_all(tmp_path: Path) -> None:
    one, other = (task_of(tmp_path, numbered(100), dev_examples=7) for _ in range(2))
    assert one.examples("dev") == other.examples("dev") and len(one.examples("dev")) == 7
    train, dev = ([example.gold for example in one.examples(split)] for split in ("train", "dev"))
    assert not set(train) & set(dev)
    assert set(train) | set(dev) == {row["answer"] for row in numbered(100)}
    assert train == sorted(train, key=lambda gold: int(gold[1:])) and dev == sorted(dev, key=lambda gold: int(gold[1:]))


@pytest.mark.parametrize(("count", "asked", "dev"), [(100, 500, 20), (100, 20, 20), (9, 5, 1), (4, 5, 0), (1, 1, 0)])
def test_dev_takes_at_most_a_fifth(tmp_path: Path, count: int, asked: int, dev: int) -> None:
    task = task_of(tmp_path, numbered(count), dev_examples=asked)
    assert (len(task.examples("dev")), len(task.examples("train"))) == (dev, count - dev)


def test_test_is_left_whole(tmp_path: Path) -> None:
    assert len(task_of(tmp_path, numbered(100)).examples("test")) == 100


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("playground/")])
def test_every_playground_task_is_there_and_accepts_its_own_answers(name: str) -> None:
    task = Task(TaskRecipe(name=name))
    examples = task.examples("test")[:100]
    assert len(examples) == 100 and all(task.score(example.completion, example.gold) for example in examples)
    assert not any(task.score("", example.gold) for example in examples)


def test_a_recipes_own_keys_win_over_the_preset() -> None:
    task = Task(TaskRecipe(name="gsm8k", dataset="other/data", test="validation", prompt="{problem}", scorer="exact"))
    assert task.sources() == {"train": "train", "test": "validation"}
    preset = task.preset
    assert (preset.dataset, preset.subset, preset.prompt, preset.completion) == ("other/data", None, "{problem}", "{answer}")
    assert task.score("x", "x")
