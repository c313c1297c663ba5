"""Law: a function of one's own is found by its module or by its file, and each way of not finding it is one message."""

from functools import partial
from pathlib import Path

import pytest
from conftest import raises

from toolkit.runtime.own_function import function_file, function_name, load_function


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str) -> object:
    return load_function(name, "task.scorer", "scorer")


def test_a_file_is_found_from_the_working_folder_and_its_neighbours_from_its_own(folder: Path) -> None:
    (folder / "a-judge").mkdir()
    (folder / "a-judge" / "own.judge.py").write_text("from neighbour_of_judge import value\ndef f():\n    return value\n")
    (folder / "a-judge" / "neighbour_of_judge.py").write_text("value = 7\n")
    assert load("a-judge/own.judge.py:f")() == 7  # type: ignore[operator]
    assert load(f"{folder}/a-judge/own.judge.py:f")() == 7  # type: ignore[operator]


# Two recipes of one process may name files of the same name, and one file may change between two calls.
def test_a_file_is_read_anew(folder: Path) -> None:
    for number, where in enumerate(["one", "two", "one"]):
        (folder / where).mkdir(exist_ok=True)
        (folder / where / "f.py").write_text(f"def f():\n    return {number}\n")
        assert load(f"{where}/f.py:f")() == number  # type: ignore[operator]


def test_the_file_of_a_function_is_known_without_running_it(folder: Path) -> None:
    (folder / "exploding.py").write_text("1 / 0\n")
    assert function_file("exploding:f") == str(folder / "exploding.py")
    assert function_file("exploding.py:f") == "exploding.py"
    assert function_file("no_such.py:f") is function_file("no_such:f") is function_file("no_such.deeper:f") is None


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no_such.py:f", "scorer.no-module", ["no_such.py"]),
        ("no_such_module:f", "scorer.no-module", ["no_such_module"]),
        ("faulty.py:f", "scorer.import", ["ZeroDivisionError"]),
        ("faulty:f", "scorer.import", ["ZeroDivisionError"]),
        ("needing.py:f", "scorer.import", ["no_such_package", "not installed"]),
        ("fine.py:g", "scorer.no-function", ["has no function g", "there: f."]),
        ("fine.py:number", "scorer.no-function", ["number"]),
        ("waiting.py:f", "scorer.async", ["async"]),
        ("ending.py:f", "scorer.import", ["SystemExit"]),
    ],
)
def test_what_cannot_be_found_is_one_message(folder: Path, name: str, code: str, words: list[str]) -> None:
    (folder / "faulty.py").write_text("1 / 0\n")
    (folder / "needing.py").write_text("import no_such_package\n")
    (folder / "fine.py").write_text("number = 1\ndef f():\n    pass\n")
    (folder / "waiting.py").write_text("async def f():\n    pass\n")
    (folder / "ending.py").write_text("raise SystemExit(2)\n")
    with raises(code, f"task.scorer {name}", *words):
        load(name)


def test_a_function_is_named_by_module_and_name() -> None:
    assert (
        function_name(test_a_function_is_named_by_module_and_name)
        == f"{__name__}:{'test_a_function_is_named_by_module_and_name'}"
    )
    assert function_name(partial(len, [])) == "builtins:len"
    assert function_name(Path) == "pathlib:Path"
