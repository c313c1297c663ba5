import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from toolkit.runtime.errors import ItemsFailed, Mistakes, PollardError, first_of

DONE = {"cli", "recipe", "runtime"}
"""Rooms in which every error has a code."""


def raised_without_a_code(file: Path) -> Iterator[str]:
    """PollardErrors that are made in the file without saying of what kind they are."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PollardError"
        if made and not any(keyword.arg == "code" for keyword in node.keywords):  # type: ignore[attr-defined]
            yield f"{file.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]


# Programs and tests tell mistakes apart by their kind: sentences may be worded anew.
@pytest.mark.parametrize("room", sorted({path.parent.name for path in (ROOT / "toolkit").rglob("*.py")} & DONE))
def test_every_error_says_of_what_kind_it_is(room: str) -> None:
    files = [path for path in (ROOT / "toolkit").rglob("*.py") if room in path.relative_to(ROOT).parts]
    assert [place for file in files for place in raised_without_a_code(file)] == []


def test_an_error_travels_to_other_processes_whole() -> None:
    error = ItemsFailed("two items", [3, 5])
    error.already_reported = True
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code, copy.items) == (ItemsFailed, "two items", "evaluation.items-failed", [3, 5])
    assert copy.already_reported


def test_a_single_mistake_is_raised_as_it_is_and_several_as_one() -> None:
    def fail(message: str) -> None:
        raise PollardError(message, code="a.kind")

    mistakes = Mistakes()
    assert mistakes.collect(lambda: 7) == 7
    mistakes.collect(lambda: fail("first"))
    with pytest.raises(PollardError) as caught:
        mistakes.raise_all()
    assert caught.value.code == "a.kind"
    mistakes.collect(lambda: fail("second"))
    mistakes.collect(lambda: fail("first"))  # once is enough
    with pytest.raises(PollardError) as caught:
        mistakes.raise_all()
    assert (str(caught.value), caught.value.code) == ("first\nsecond", "several")


def test_of_many_faults_the_first_are_shown_and_the_others_counted() -> None:
    assert first_of(["a", "b"]) == "a\nb"
    assert first_of([str(i) for i in range(1_010)], shown=2) == "0\n1\n… and 1,008 more"
