from pathlib import Path

import pytest

from toolkit.errors import PollardError
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task, Verdict
from toolkit.tasks.own_scorer import source_of


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
    assert source_of("judging_here:longer") == str(folder / "judging_here.py")


def test_what_is_neither_true_nor_false_fails_the_item(folder: Path) -> None:
    (folder / "vague.py").write_text("def maybe(prediction, gold):\n    return 0.5\n")
    (verdict,) = task_with("vague:maybe").scorer.verdicts([("a", "b")])
    assert verdict.error == "TypeError: vague:maybe must say True or False, and said 0.5"


@pytest.mark.parametrize(
    ("text", "scorer", "told"),
    [
        (None, "nowhere_at_all:f", "there is no module nowhere_at_all. It is looked for in {folder} (nowhere_at_all.py)"),
        ("x = 1\n", "lacking:f", "lacking has no function f. Functions there: none."),
        ("def right(p, g):\n    return True\n", "lacking_f:f", "lacking_f has no function f. Functions there: right."),
        ("import not_installed_here\n", "needing:f", "needing needs not_installed_here, which is not installed."),
        ("def f(:\n", "broken:f", "broken cannot be imported (SyntaxError: "),
        ("1 / 0\n", "raising:f", "raising cannot be imported (ZeroDivisionError: division by zero)."),
    ],
)
def test_a_scorer_that_cannot_be_had_says_why(folder: Path, text: str | None, scorer: str, told: str) -> None:
    if text is not None:
        (folder / f"{scorer.partition(':')[0]}.py").write_text(text)
    with pytest.raises(PollardError) as caught:
        task_with(scorer)
    assert f"task.scorer {scorer}: {told.format(folder=folder)}" in str(caught.value)
