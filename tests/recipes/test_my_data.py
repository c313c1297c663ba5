"""A new user's first own job: their 200 lines, two lines of recipes/my-data.yaml changed, the command that stands in it."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT

from toolkit.cli.main import main
from toolkit.recipe.file import read_values

LINES = 200
NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a clone has, and the user's own file with the recipe's columns."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "playground").symlink_to(PLAYGROUND)
    draw = random.Random(0)
    lines = [json.dumps({"question": f"Which is longer: {a} {n}?", "answer": a * n}) for a, n in _pairs(draw)]
    (tmp_path / "mine.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def _pairs(draw: random.Random) -> list[tuple[str, int]]:
    return [(draw.choice(NAMES), draw.randint(1, 3)) for _ in range(LINES)]


def recipe_text() -> str:
    return (ROOT / "recipes" / "my-data.yaml").read_text()


def mine(text: str, **changes: str) -> str:
    """The recipe with the user's two files in place of the two that stand there, and perhaps a mistake."""
    for old, new in (("sorting/train", "train"), ("sorting/test", "test")):
        assert text.count(f"data/playground/{old}.jsonl") == 1
        text = text.replace(f"data/playground/{old}.jsonl", f"mine.{new}.jsonl")
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def split_as_the_recipe_says() -> None:
    commands = [line.removeprefix("#").strip() for line in recipe_text().splitlines() if "mine.jsonl >" in line]
    assert [command.split()[0] for command in commands] == ["head", "tail"]
    for command in commands:
        subprocess.run(command, shell=True, check=True)


# As it is printed, in a process of its own, with all 200 steps: nothing is shortened but the number of ranks.
@pytest.mark.launcher
def test_two_changed_lines_make_a_run_of_ones_own_data(folder: Path) -> None:
    split_as_the_recipe_says()
    (folder / "my-data.yaml").write_text(mine(recipe_text()))
    command = [sys.executable, "-m", "toolkit.cli", "report", "my-data.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "runs" / "my-data" / "report.json").read_text())
    scores = {
        role: json.loads((folder / f"runs/my-data/evaluation/{role}.json").read_text()) for role in ("original", "recovered")
    }
    assert [score["n"] for score in scores.values()] == [LINES // 4] * 2
    assert scores["recovered"]["score"] > scores["original"]["score"]
    assert report and (folder / "runs" / "my-data" / "report.html").stat().st_size > 1000
    assert "Traceback" not in done.stdout + done.stderr


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}


def said(folder: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the user is told, on one line; it must be before anything is run."""
    (folder / "my-data.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["pollard", "report", "my-data.yaml"])
    assert main() == 1
    out = capsys.readouterr().out
    assert not (folder / "runs" / "my-data" / "plan.json").exists() and "Traceback" not in out
    return " ".join(out.split())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"{question}": "{text}"}, "mine.train.jsonl, line 1: no field `text`. Fields there: question, answer."),
        ({"mine.train.jsonl": "my.train.jsonl"}, "Cannot read my.train.jsonl"),
        ({"exact  ": "exactly"}, "Allowed: exact"),
    ],
)
def test_first_mistakes_are_told_with_the_remedy(
    folder: Path, change: dict[str, str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split_as_the_recipe_says()
    assert told in said(folder, mine(recipe_text(), **change), capsys, monkeypatch)


def test_the_files_are_named_on_two_lines_of_their_own() -> None:
    values = read_values(recipe_text())
    assert {values["task"]["train"], values["task"]["test"]} == {
        f"data/playground/sorting/{name}.jsonl" for name in ("train", "test")
    }
    for split in ("train", "test"):
        assert sum(line.strip() == f"{split}: data/playground/sorting/{split}.jsonl" for line in recipe_text().splitlines()) == 1
