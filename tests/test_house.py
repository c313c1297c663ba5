"""The shape of the code: rooms that import one way, files that can be read as a chapter, names that can be guessed."""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "toolkit").rglob("*.py"))
LONGEST = 300
PRIVATE_WORDS = re.compile(r"(^|_)(told|said|beside|whom|seen|hopeless|lasting|everywhere)(_|$)|^(MADE|OURS|ALSO|BUSY|HERE)$")
"""What a newcomer cannot guess the meaning of."""


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def public_names(file: Path) -> Iterator[str]:
    """Of functions, classes, methods, constants and parameters."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_can_be_read_as_a_chapter(file: Path) -> None:
    assert lines_of(file) < LONGEST


def test_files_are_neither_scraps_nor_heaps() -> None:
    sizes = [lines_of(file) for file in FILES if file.name != "__init__.py"]
    assert 90 <= statistics.median(sizes) <= 170, statistics.median(sizes)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_public_name_can_be_guessed(file: Path) -> None:
    assert not [name for name in public_names(file) if not name.startswith("_") and PRIVATE_WORDS.search(name)]


def test_a_test_file_has_its_name_alone() -> None:
    """Folders of tests are no packages: pytest collects one file of a name, and helpers are imported by theirs."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_rooms_import_one_way() -> None:
    """The contracts stand in pyproject.toml: layers, siblings apart, and who may import what of other projects."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_inside_a_function_names_its_reason() -> None:
    """Imports stand at the top, or the file that hides one says why: start-up time, or a package that few need."""
    without = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        hidden = [
            node for function in ast.walk(ast.parse(text)) if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit")
        ]  # fmt: skip
        lines = text.splitlines()
        explained = "cli/verbs" in file.as_posix()  # the rule is stated once, in verb.py
        without += [
            f"{file.relative_to(ROOT)}:{node.lineno}" for node in hidden
            if not explained and not any("#" in line for line in lines[node.lineno - 2 : node.end_lineno])
        ]  # fmt: skip
    assert not without


def test_untyped_dictionaries_stay_at_the_edges() -> None:
    found = {file: len(re.findall(r"dict\[str, Any\]", file.read_text(encoding="utf-8"))) for file in FILES}
    assert sum(found.values()) <= 60, {str(file.relative_to(ROOT)): n for file, n in found.items() if n}
