"""Laws of `pollard init`: what it writes is a recipe that goes the whole way; what it has understood is told; train and test
share no question; nothing of the user's is replaced; each mistake is one message before anything is written."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import PLAYGROUND

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.cli.verbs import init
from toolkit.recipe.file import load_recipe
from toolkit.tasks import Task

MODEL = str(PLAYGROUND / "model")
Pollard = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pollard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Pollard:
    """The command in this process and an empty folder: exit status, stdout, and all that it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", *arguments])
        capfd.readouterr()
        status, said = cli.main(), capfd.readouterr()
        return status, said.out, said.out + said.err

    return call


def tickets(file: str, rows: int = 60, header: Sequence[str] = ("id", "ticket text", "team"), delimiter: str = ",") -> None:
    with open(file, "w", newline="", encoding="utf-8-sig") as to:
        writer = csv.writer(to, delimiter=delimiter)
        writer.writerow(header)
        for n in range(rows):
            team = ("billing", "shipping", "access")[n % 3]
            writer.writerow([n, f"It is about {team}, for the {n // 6}th time.", f"{team.capitalize()} " if n % 7 == 0 else team])


def test_a_csv_file_becomes_a_recipe_whose_halves_share_no_question(pollard: Pollard) -> None:
    tickets("tickets.csv")
    status, out, err = pollard("init", "tickets.csv", "--model", MODEL)
    assert status == 0, err
    assert "classification into 3 labels" in out and "Not used: id" in out and "Answer with one of" in out
    recipe = load_recipe("tickets.yaml")
    assert (recipe.name, recipe.model.path, recipe.pruning.keep) == ("tickets", MODEL, 0.5)
    task = Task(recipe.task)
    halves = [{example.question for example in task.examples(split)} for split in ("train", "dev", "test")]
    assert sum(len(task.examples(split)) for split in ("train", "dev", "test")) == 60
    assert not (halves[0] | halves[1]) & halves[2]
    assert (recipe.finetuning.max_length, recipe.evaluation.max_new_tokens) == (64, 16)  # 44 tokens at most, and 6


def test_the_same_rows_in_another_format_give_the_same_recipe(pollard: Pollard, tmp_path: Path) -> None:
    tickets("tickets.csv")
    tickets("semicolons.csv", delimiter=";")
    with open("tickets.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    Path("array.json").write_text(json.dumps({"data": rows}))
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = set()
    for file in ("tickets.csv", "semicolons.csv", "array.json", "lines.jsonl"):
        assert pollard("init", file, "--model", MODEL, "--name", "same", "--overwrite")[0] == 0
        written.add(tuple(Path(f"same{ending}").read_text() for ending in (".yaml", ".train.jsonl", ".test.jsonl")))
    assert len(written) == 1


@pytest.mark.slow
def test_the_recipe_goes_the_whole_way(pollard: Pollard) -> None:
    tickets("tickets.csv")
    assert pollard("init", "tickets.csv", "--model", MODEL, "--keep", "4")[0] == 0
    status, _, err = pollard("report", "tickets.yaml", "finetuning.trainer.max_steps=2")
    assert status == 0, err
    assert json.loads(Path("runs/tickets/report.json").read_text())["models"]["recovered"]


def test_a_test_file_is_used_as_it_is_and_nothing_is_copied(pollard: Pollard) -> None:
    tickets("train.csv")
    tickets("held-out.csv", rows=9)
    assert pollard("init", "train.csv", "--model", MODEL, "--test", "held-out.csv", "--name", "mine", "--to", "my.yaml")[0] == 0
    task = load_recipe("my.yaml").task
    assert (task.train, task.test) == ("train.csv", "held-out.csv")
    assert sorted(path.name for path in Path().iterdir()) == ["held-out.csv", "my.yaml", "train.csv"]


def test_json_has_what_was_understood_and_the_preview(pollard: Pollard) -> None:
    Path("sums.jsonl").write_text("".join(f'{{"question": "{n} + 1?", "answer": "#### {n + 1}"}}\n' for n in range(30)))
    status, out, err = pollard("init", "sums.jsonl", "--model", MODEL, "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert (facts["recipe"], facts["task"]["scorer"], facts["preview"]["lengths"]["test"]["n"]) == ("sums.yaml", "numeric", 6)


def test_nothing_that_is_there_is_replaced_unasked_and_the_data_never(pollard: Pollard) -> None:
    tickets("tickets.csv")
    assert pollard("init", "tickets.csv", "--model", MODEL)[0] == 0
    before = {path.name: path.read_text() for path in Path().iterdir()}
    status, _, err = pollard("init", "tickets.csv", "--model", MODEL, "--keep", "0.25")
    assert status == 1 and "tickets.yaml" in err and "--overwrite" in err
    status, _, err = pollard("init", "tickets.train.jsonl", "--model", MODEL, "--overwrite")
    assert status == 1 and "tickets.train.jsonl" in err and "--name" in err
    assert {path.name: path.read_text() for path in Path().iterdir()} == before


def test_a_model_that_is_not_there_may_be_named_later(pollard: Pollard) -> None:
    tickets("tickets.csv")
    Path("empty").mkdir()
    status, _, err = pollard("init", "tickets.csv", "--model", "./empty")
    assert status == 1 and "empty" in err
    assert "a guess" in Path("tickets.yaml").read_text() and load_recipe("tickets.yaml", [f"model={MODEL}"])


def test_a_terminal_is_asked_and_has_defaults(pollard: Pollard, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets("tickets.csv")
    answers = iter(["tickets.csv", "", "4"])
    monkeypatch.setattr(init, "_can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    status, _, err = pollard("init")
    assert status == 0 and "data/playground/model" in err and next(answers, None) is None
    recipe = load_recipe("tickets.yaml")
    assert recipe.pruning.keep == 4 and recipe.model.path.endswith("data/playground/model")


WRONG: dict[str, tuple[bytes, tuple[str, ...], tuple[str, ...]]] = {  # the file's bytes, more arguments, what is told
    "empty": (b"", (), ("empty",)),
    "a header only": (b"text,team\n", (), ("empty",)),
    "one row": (b"question,answer\nWhy?,Because\n", (), ("1 question",)),
    "broken lines": (b'question,answer\nWhy?,"so\nHow?,thus\n', (), ("line 2",)),
    "no answer": (b"question,answer\nWhy?,so\nHow?,\nWho?,me\n", (), ("line 3", "empty")),
    "Latin-1": ("question,answer\nWürde?,ja\nHow?,so\n".encode("latin-1"), (), ("line 2", "UTF-8")),
    "columns of no usual name": (b"a,b,c\n1,2,3\n4,5,6\n", (), ("a, b, c", "--prompt")),
    "a template of another column": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--prompt", "{ask}"), ("ask",)),
    "no scorer": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--scorer", "exat"), ("exact",)),
    "no numbers": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--scorer", "numeric"), ("line 2",)),
    "all of the experts": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--keep", "1.5"), ("--keep",)),
    "no folder": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--to", "no/such.yaml"), ("no/such.yaml",)),
    "no test file": (b"question,answer\nWhy?,so\nHow?,thus\n", ("--test", "nope.csv"), ("nope.csv",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_and_nothing_is_written(pollard: Pollard, name: str) -> None:
    content, more, told = WRONG[name]
    Path("mine.csv").write_bytes(content)
    status, _, err = pollard("init", "mine.csv", "--model", MODEL, *more)
    assert status == 1 and all(word in err for word in told), err
    assert "Traceback" not in err and [path.name for path in Path().iterdir()] == ["mine.csv"]


def test_bad_rows_are_left_out_when_asked_and_counted(pollard: Pollard) -> None:
    Path("mine.csv").write_text("question,answer\n" + "".join(f"{n}?,{n} is it\n" for n in range(20)) + "How?,\n" + "one\n")
    status, _, told = pollard("init", "mine.csv", "--model", MODEL)
    assert status == 1 and "--on-bad-lines skip" in told
    status, _, told = pollard("init", "mine.csv", "--model", MODEL, "--on-bad-lines", "skip")
    assert status == 0 and "cannot be used" in told, told
    assert sum(len(Task(load_recipe("mine.yaml").task).examples(split)) for split in ("train", "dev", "test")) == 20


@pytest.mark.parametrize(("given", "missing"), [((), "DATA"), (("mine.csv",), "--model")])
def test_without_a_terminal_it_says_what_is_missing(pollard: Pollard, given: tuple[str, ...], missing: str) -> None:
    Path("mine.csv").write_text("question,answer\nWhy?,so\nHow?,thus\n")
    status, _, err = pollard("init", *given)
    assert status == 1 and missing in err
