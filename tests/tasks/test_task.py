import json
from pathlib import Path
from typing import Any

import pytest
from conftest import raises
from pydantic import ValidationError

from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.errors import PollardError
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


# As preference data and TRL's conversational ones have it.
def test_messages_may_stand_in_several_columns(tmp_path: Path) -> None:
    asked, answered = [{"role": "user", "content": "Sky?"}], [{"role": "assistant", "content": "Blue."}]
    rows = [{"prompt": asked, "chosen": answered}] * 6
    example = task_of(tmp_path, rows, messages=["prompt", "chosen"]).examples("test")[0]
    assert (example.messages, example.completion, example.gold) == (tuple(asked), "Blue.", "Blue.")
    fault = fault_of(tmp_path, rows, messages=["chosen", "prompt"])
    assert "line 1: `chosen + prompt` ends with a message of the user" in fault
    assert "line 1: no field `completion`" in fault_of(tmp_path, rows, messages=["prompt", "completion"])
    assert "line 1: `prompt + chosen` must be a list of" in fault_of(
        tmp_path, [{"prompt": "Sky?", "chosen": answered}], messages=["prompt", "chosen"]
    )


@pytest.mark.parametrize("kept", [json.loads, str])
def test_messages_are_no_text_of_a_template(tmp_path: Path, kept: Any) -> None:
    chat = kept(json.dumps([{"from": "human", "value": "Sky?"}]))
    fault = fault_of(tmp_path, [{"prompt": chat, "a": "Blue."}], prompt="{prompt}", completion="{a}")
    assert "line 1: the field `prompt` holds chat messages and no text" in fault and "task.messages" in fault
    assert task_of(tmp_path, [{"prompt": [{"x": 1}], "a": "Blue."}] * 6, prompt="{prompt}", completion="{a}").examples("test")


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
    ("row", "recipe", "code", "named"),
    [
        ({"text": "one"}, {}, "data.no-field", "line 2: no field `question`. Fields there: text."),
        ({}, {}, "data.no-field", "Fields there: none."),
        (ROW, {"answer": "{label}"}, "data.no-field", "`label`"),
        (ROW, {"messages": "chat"}, "data.no-field", "`chat`"),
        (ROW | {"answer": None}, {}, "data.null", "line 2: the field `answer`"),
        (ROW | {"answer": " \n"}, {}, "data.no-completion", "line 2"),
        (ROW, {"prompt": "{question"}, "task.template", "'{question'"),
        (ROW, {"prompt": "{}"}, "task.template", "'{}'"),
        (ROW, {"prompt": "{question.text}"}, "data.no-field", "`question[text]`"),
        (ROW, {"prompt": "{question[text]}"}, "data.no-part", "`question` is a text"),
        (ROW | {"question": {}}, {"prompt": "{question!s:.9}{question[text]}"}, "data.bad-lines", "line 2: the template"),
        (ROW, {"prompt": "{question:d}"}, "task.template", "write {column}, and {{ for a brace"),
        (ROW, {"scorer": "numeric"}, "scorer.gold", "line 1: scorer `numeric` finds nothing to compare with in the answer 'two'"),
        (ROW | {"answer": "I do not know. ####"}, {"scorer": "contains"}, "scorer.gold", "line 2: scorer `contains`"),
    ],
)
def test_a_line_that_does_not_serve_is_named(
    tmp_path: Path, row: dict[str, Any], recipe: dict[str, str], code: str, named: str
) -> None:
    with raises(code, named):
        task_of(tmp_path, [ROW, row], **recipe).examples("test")


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


# Distilled data are often cut off at a length.
@pytest.mark.parametrize(
    ("completion", "fault"),
    [
        ("<think>\nSo 3 and", "begins reasoning (<think>) that never ends, and has no answer"),
        ("[THINK]So 3 and", "begins reasoning ([THINK]) that never ends, and has no answer"),
        ("<think>\n7\n</think>\n", "is nothing but reasoning, and has no answer"),
    ],
)
def test_reasoning_without_an_answer_is_refused_with_its_line(tmp_path: Path, completion: str, fault: str) -> None:
    assert f"line 1: the completion {fault}" in fault_of(
        tmp_path, [{"q": "3 + 4?", "a": completion}], prompt="{q}", completion="{a}"
    )
    chat = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": completion}]
    assert f"line 1: the completion {fault}" in fault_of(tmp_path, [{"chat": chat}], messages="chat")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert fault_of(tmp_path, []) == "rows.jsonl is empty: task rows needs test examples."


@pytest.mark.parametrize("recipe", [{}, {"prompt": "{question}"}, {"completion": "{answer}"}])
def test_a_custom_task_says_what_it_needs(recipe: dict[str, str]) -> None:
    with raises("task.key-missing", "task.prompt", "task.completion", "task.messages"):
        Task(TaskRecipe(**recipe))


@pytest.mark.parametrize("test", [None, "test", "test.pdf"])
def test_data_that_is_not_given_is_asked_for(tmp_path: Path, test: str | None) -> None:
    fault = fault_of(tmp_path, [ROW], test=test)
    assert "Task rows has no test data: give `task.test`, a data file (.jsonl, " in fault
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


BAD = [ROW, ROW | {"answer": ""}, ROW, {"question": "three?"}, ROW | {"answer": None}, ROW | {"question": " "}, "no object"]


def test_all_bad_lines_are_told_at_once_with_a_way_out(tmp_path: Path) -> None:
    assert fault_of(tmp_path, BAD) == (
        "rows.jsonl, line 2: the completion is empty.\n"
        "rows.jsonl, line 4: no field `answer`. Fields there: question.\n"
        "rows.jsonl, line 5: the field `answer` is null.\n"
        "rows.jsonl, line 6: the prompt is empty.\n"
        "rows.jsonl, line 7: holds str, not a JSON object with columns.\n"
        "5 of 7 lines in rows.jsonl cannot be used. Mend them, or leave them out with `task.on_bad_lines: skip`."
    )


def test_of_many_bad_lines_some_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, [ROW, *[{"question": "q", "answer": ""}] * 1200])
    assert "line 6: the completion is empty.\n… and 1,195 more\n1,200 of 1,201 lines in rows.jsonl" in fault
    assert len(fault.splitlines()) == 7


def test_bad_lines_may_be_left_out_and_are_counted_aloud_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    task = task_of(tmp_path, BAD, on_bad_lines="skip")
    assert len(task.examples("test")) == 2 and task.bad_lines("test") == 5
    assert len(task.examples("train")) + len(task.examples("dev")) == 2 and task.bad_lines("dev") == 5
    task_of(tmp_path, BAD, on_bad_lines="skip").examples("test")
    said = "".join(capsys.readouterr().out.split())
    for split in ("test", "train"):
        assert said.count(f"5of7linesin{tmp_path}/rows.jsonlcannotbeusedandareleftoutof{split}".replace(" ", "")) == 1


def test_without_a_good_line_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, BAD[1:2], on_bad_lines="skip")
    assert fault == "rows.jsonl, line 2: the completion is empty.".replace("2", "1") + (
        "\n1 of 1 lines in rows.jsonl cannot be used. Mend them."
    )


def test_nothing_is_skipped_where_all_lines_serve(tmp_path: Path) -> None:
    task = task_of(tmp_path, [ROW], on_bad_lines="skip")
    assert task.examples("test") == task_of(tmp_path, [ROW]).examples("test") and task.bad_lines("test") == 0


def test_half_a_character_in_a_conversation_is_named(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "smile \ud83d"}, {"role": "assistant", "content": "Ho."}]
    fault = fault_of(tmp_path, [{"chat": chat}], messages="chat", prompt=None, completion=None)
    assert fault.startswith("rows.jsonl, line 1: the field `chat` holds half a surrogate pair")


def test_a_conversation_nested_beyond_measure_is_a_bad_line(tmp_path: Path) -> None:
    nested: Any = "x"
    for _ in range(400):
        nested = [nested]
    assert task_of(tmp_path, [ROW | {"meta": nested}]).examples("test")  # nobody looks at it
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": ' + "[" * 5000 + "]" * 5000 + "}\n")
    path = str(tmp_path / "rows.jsonl")
    with raises("data.bad-line", "line 1"):
        Task(TaskRecipe(train=path, test=path, prompt="{question}", completion="{answer}")).examples("test")


def test_splits_may_be_several_files_patterns_and_folders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.jsonl", "more/b.jsonl", "more/c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": name, "answer": "x"}) + "\n")
    keys = {"prompt": "{question}", "completion": "{answer}"}
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "more/b.jsonl", "more/c.jsonl"))
    task = Task(TaskRecipe(train=[c, a], test=f"{tmp_path}/more/*.jsonl", **keys))
    assert [example.where for example in task.examples("train")] == [f"{c}, line 1", f"{a}, line 1"]
    assert [example.where for example in task.examples("test")] == [f"{b}, line 1", f"{c}, line 1"]
    folder = Task(TaskRecipe(train=a, test=str(tmp_path / "more"), **keys))
    assert folder.examples("test") == task.examples("test") and folder.is_local("test")
    before = [task.fingerprint("train"), task.fingerprint("test"), folder.fingerprint("test")]
    Path(c).write_text(json.dumps({"question": "another", "answer": "x"}) + "\n")
    after = [task.fingerprint("train"), task.fingerprint("test"), folder.fingerprint("test")]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_the_content_of_a_folder_with_a_data_set_identifies_its_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"question,answer\n{split},x\n")
    task = Task(TaskRecipe(dataset=str(tmp_path), train="train", test="test", prompt="{question}", completion="{answer}"))
    assert [example.messages[0]["content"] for example in task.examples("test")] == ["test"] and task.is_local("test")
    before = task.fingerprint("test")
    (tmp_path / "test.csv").write_text("question,answer\nanother,x\n")
    assert task.fingerprint("test") != before


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"train": []}, "name a file, a list of files, or a split"),
        ({"train": ["a.csv", ""]}, "name a file, a list of files, or a split"),
        ({"choices": ["a"]}, "give a column for each choice, at least two"),
        ({"label_format": "text"}, "label_format says how `label` names one of `labels` or `choices`"),
        ({"name": "classification", "label_format": "letter"}, "labels have no letters"),
        ({"on_bad_lines": "warn"}, "Input should be 'error' or 'skip'"),
    ],
)
def test_keys_about_data_are_checked(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TaskRecipe(**keys)
