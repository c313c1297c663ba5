import json
from pathlib import Path

import pytest
from conftest import raises

from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.own_function import function_file
from toolkit.tasks import Task, Verdict


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task_with(scorer: str) -> Task:
    return Task(TaskRecipe(prompt="{q}", completion="{a}", scorer=scorer))


def test_a_function_in_the_working_folder_judges(folder: Path) -> None:
    (folder / "judging_here.py").write_text("def longer(prediction, gold):\n    return len(prediction) >= len(gold)\n")
    task = task_with("judging_here:longer")
    assert task.scorer.verdicts([("abc", "ab"), ("a", "ab")]) == [Verdict(True, True), Verdict(False, False)]
    assert function_file("judging_here:longer") == str(folder / "judging_here.py")


@pytest.mark.parametrize(
    "value",
    ["numpy.bool_(True)", "torch.tensor(True)", "torch.tensor([True])", "1", "numpy.float32(1)", "numpy.array([1.0])", "True"],
)
def test_what_libraries_have_for_true_is_true(folder: Path, value: str) -> None:
    name = f"truth_{abs(hash(value))}"
    (folder / f"{name}.py").write_text(f"import numpy, torch\ndef f(prediction, gold):\n    return {value}\n")
    assert task_with(f"{name}:f").scorer.verdicts([("a", "b")]) == [Verdict(True, True)]
    assert task_with(f"{name}:f").score("a", "b") is True


def test_a_scorer_that_runs_code_leaves_the_process_as_it_was(folder: Path) -> None:
    (folder / "executing.py").write_text("def run(prediction, gold):\n    exec(prediction)\n    return True\n")
    answers = ["import os; os.chdir('/')", "import sys; sys.exit(0)", "exit()", "x = 1"]
    found = task_with("executing:run").scorer.verdicts([(answer, "") for answer in answers])
    assert [verdict.strict for verdict in found] == [True, False, False, True]
    assert found[1].error == "RuntimeError: it ended Python: sys.exit(0)" and Path.cwd() == folder
    with raises("scorer.raises", "it ended Python"):
        task_with("executing:run").score("exit()", "")


def test_a_module_that_is_a_script_and_a_function_that_is_async_are_refused(folder: Path) -> None:
    (folder / "a_script.py").write_text("import sys\nsys.exit('usage: a_script FILE')\n")
    with raises("scorer.import", "a_script", "SystemExit: usage: a_script FILE"):
        task_with("a_script:f")
    (folder / "waiting.py").write_text("async def f(prediction, gold):\n    return True\n")
    with raises("scorer.async", "f is `async`"):
        task_with("waiting:f")


# As with F1: all of it is strictly right, one half flexibly.
def test_a_degree_is_kept_as_credit(folder: Path) -> None:
    (folder / "passing.py").write_text("def share(prediction, gold):\n    return len(prediction) / int(gold)\n")
    found = task_with("passing:share").scorer.verdicts([("abcd", "4"), ("ab", "4"), ("a", "4"), ("", "4")])
    assert [(v.strict, v.flexible, v.credit) for v in found] == [
        (True, True, 1.0),
        (False, True, 0.5),
        (False, False, 0.25),
        (False, False, 0.0),
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "None"),
        ("'yes'", "'yes'"),
        ("'1'", "'1'"),
        ("float('nan')", "nan"),
        ("1.5", "1.5"),
        ("-1", "-1"),
        ("[True]", "[True]"),
        ("{}", "{}"),
        ("__import__('torch').tensor([True, False])", "tensor([ True, False])"),
        ("'x' * 500", "'" + "x" * 79 + "…"),
    ],
)
def test_what_is_neither_true_nor_a_degree_fails_the_item(folder: Path, value: str, said: str) -> None:
    name = f"vague_{abs(hash(value))}"
    (folder / f"{name}.py").write_text(f"def maybe(prediction, gold):\n    return {value}\n")
    (verdict,) = task_with(f"{name}:maybe").scorer.verdicts([("a", "b")])
    assert verdict.error == f"TypeError: {name}:maybe must say True or False, or a degree from 0 to 1, and said {said}"


# HumanEval and MBPP: the gold text is no answer but the tests that an answer must pass.
RUNS_TESTS = (
    "def passes(prediction, gold):\n    names = {}\n    exec(prediction, names)\n    exec(gold, names)\n    return True\n"
)


def running_task(folder: Path, module: str, source: str, rows: list[dict[str, str]], **keys: str) -> Task:
    (folder / f"{module}.py").write_text(source)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"train": "rows.jsonl", "test": "rows.jsonl", "prompt": "{q}", "completion": "{code}", "answer": "{tests}"} | keys
    return Task(TaskRecipe(**{key: value for key, value in how.items() if value}))


GOOD = {"q": "Add one.", "code": "def f(x):\n    return x + 1", "tests": "assert f(1) == 2"}


def test_a_scorer_that_runs_tests_is_asked_about_completions_not_about_the_tests(folder: Path) -> None:
    task = running_task(folder, "running", RUNS_TESTS, [GOOD], scorer="running:passes")
    (example,) = task.examples("test")
    assert task.score(example.completion, example.gold)


def test_completions_that_are_wrong_by_their_own_answers_are_told_with_all_their_lines(folder: Path) -> None:
    source = RUNS_TESTS.replace("    exec(gold, names)\n    return True", "    return eval(gold.removeprefix('assert '), names)")
    bad = GOOD | {"tests": "assert f(1) == 3"}
    raising = GOOD | {"code": "def g("}
    with raises("scorer.gold") as caught:
        running_task(folder, "checking", source, [bad, GOOD, raising, bad], scorer="checking:passes").examples("test")
    first, second, third = str(caught.value).split("\n")
    assert first.startswith("rows.jsonl, line 1: scorer `checking:passes` says that the completion 'def f(x):")
    assert first.endswith("is wrong by its own answer 'assert f(1) == 3'.")
    assert second.startswith("rows.jsonl, line 3: scorer `checking:passes` fails on the completion 'def g(' itself: SyntaxError")
    assert third.startswith("rows.jsonl, line 4:")


# A scorer that compares with something of its own need not find the completion right.
def test_without_an_answer_of_its_own_a_completion_need_not_be_right(folder: Path) -> None:
    never = "def never(prediction, gold):\n    return False\n"
    assert running_task(folder, "doubting", never, [GOOD], scorer="doubting:never", answer="").examples("test")


@pytest.mark.parametrize(
    ("text", "scorer", "code", "named"),
    [
        (None, "nowhere_at_all:f", "scorer.no-module", "{folder} (nowhere_at_all.py)"),
        ("x = 1\n", "lacking:f", "scorer.no-function", "Functions there: none."),
        ("def right(p, g):\n    return True\n", "lacking_f:f", "scorer.no-function", "Functions there: right."),
        ("import not_installed_here\n", "needing:f", "scorer.import", "not_installed_here"),
        ("def f(:\n", "broken:f", "scorer.import", "SyntaxError"),
        ("1 / 0\n", "raising:f", "scorer.import", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_scorer_that_cannot_be_had_says_why(folder: Path, text: str | None, scorer: str, code: str, named: str) -> None:
    if text is not None:
        (folder / f"{scorer.partition(':')[0]}.py").write_text(text)
    with raises(code, scorer, named.format(folder=folder)):
        task_with(scorer)


# A judge may look at the line of data; it may change what it is given, and nothing else changes.
JUDGE = """
def judge(prediction, gold, row):
    assert row["tests"] == gold, row
    row.clear()
    return len(prediction) / 100
"""


def test_a_function_with_a_parameter_row_gets_the_line_of_data(folder: Path) -> None:
    task = running_task(folder, "looking", JUDGE, [GOOD, GOOD | {"q": "Add two.", "tests": "other"}], scorer="looking.py:judge")
    examples = task.examples("test")
    assert [example.row["q"] for example in examples] == ["Add one.", "Add two."]
    for _ in range(2):
        pairs = [("x" * 25, example.gold) for example in examples]
        found = task.scorer.verdicts(pairs, [example.row for example in examples])
        assert [verdict.credit for verdict in found] == [0.25, 0.25], found
    assert task.score("x" * 100, examples[1].gold, examples[1].row) is True


# It may ask a server that costs, and it may judge by anything in the line: reading the test set asks it once.
def test_a_function_that_looks_at_the_line_is_asked_about_one_gold_answer_alone(folder: Path) -> None:
    asked: list[str] = []
    rows = [GOOD | {"q": str(number)} for number in range(20)]
    task = running_task(
        folder, "counting", "def wrong(prediction, gold, row):\n    return 0.0\n", rows, scorer="counting.py:wrong"
    )
    assert len(task.examples("test")) == 20
    judge = task.with_scorer(lambda prediction, gold, row: asked.append(row["q"]) or 0.0)
    assert judge.scorer.gold_faults([("a", "a")] * 20, rows) == [None] * 20 and asked == ["0"]
    broken = running_task(folder, "broken", "def f(prediction, gold, row):\n    return row['no']\n", rows, scorer="broken.py:f")
    with raises("scorer.gold", "rows.jsonl, line 1", "KeyError: 'no'"):
        broken.examples("test")


@pytest.mark.parametrize("function", [lambda answer: True, lambda prediction, gold, more: True, lambda row: True])
def test_a_function_that_takes_anything_else_is_refused(function: object) -> None:
    with raises("scorer.signature", "(prediction, gold)"):
        task_with("exact").with_scorer(function)  # type: ignore[arg-type]


def test_another_scorer_leaves_the_task_as_it_is() -> None:
    async def waits(prediction: str, gold: str) -> bool:
        return True

    task = task_with("exact")
    other = task.with_scorer(lambda prediction, gold: len(prediction) == len(gold))
    assert (task.score("b", "a"), other.score("b", "a")) == (False, True)
    assert "exact" in repr(task) and "test_own_scorer:" in repr(other)
    with raises("scorer.async", "waits"):
        task.with_scorer(waits)
