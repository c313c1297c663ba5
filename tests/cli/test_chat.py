import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console
from small_run import TASK, make_small, small_recipe

from toolkit.cli import chat_session as chat
from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.pipeline.run_models import find_run
from toolkit.recipe.file import dump_recipe


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose pruned model is the original again: both answer alike."""
    make_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "pruned").symlink_to(tmp_path / "original")
    (folder / "recipe.yaml").write_text(dump_recipe(small_recipe()))
    return folder


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`pollard chat …` with these lines through a pipe: exit status and what it printed."""

    def run(lines: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", "chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
        return cli.main(), capsys.readouterr().out

    return run


def test_both_models_answer_what_comes_through_a_pipe(run: Path, ask) -> None:
    status, out = ask("How many [8] pens?\n\n/quit\nnever asked\n", "small")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("memory: original ") and " + pruned " in lines[0] and lines[0].endswith("of weights on cpu")
    assert "> How many [8] pens?" in lines and "never asked" not in out
    assert [line.split()[0] for line in lines if "tokens, " in line] == ["original", "pruned"]
    assert "cut off after 4 tokens: --max-new-tokens" in out


# A model's own answers belong to its conversation; /new forgets them.
def test_a_conversation_goes_on_until_a_new_one(run: Path, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    render = chat.encode_prompt
    monkeypatch.setattr(chat, "encode_prompt", lambda t, e: asked.append([m["role"] for m in e.messages]) or render(t, e))
    assert ask("one\ntwo\n/new\nthree\n", str(run), "--models", "pruned", "--max-new-tokens", "2")[0] == 0
    assert asked == [["user"], ["user", "assistant", "user"], ["user"]]


def test_the_tasks_prompt_is_put_around_a_question_unless_raw(run: Path, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(task=TASK | {"prompt": "Which team?\n{question}"})
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    asked = []
    render = chat.encode_prompt
    monkeypatch.setattr(chat, "encode_prompt", lambda t, e: asked.append(e.messages[-1]["content"]) or render(t, e))
    status, out = ask("a printer\nand now?\n", "small", "--models", "pruned")
    assert status == 0 and "the task's prompt: 'Which team?\\n{question}'" in out
    ask("a printer\n", "small", "--models", "pruned", "--raw")
    assert asked == ["Which team?\na printer", "and now?", "a printer"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "error No run at smal. Did you mean `small`? Runs here: small.\n"),
        (["small", "--models", "orginal"], "`orginal` is no model of a run. Did you mean `original`? There are: "),
        (["small", "--models", "recovered"], "has no recovered model. There are: original, pruned.\n"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_told(run: Path, ask, arguments: list[str], said: str) -> None:
    status, out = ask("", *arguments)
    assert status == 1 and said in out


def test_a_run_without_a_pruned_model_says_how_to_make_one(run: Path, ask) -> None:
    (run / "pruned").unlink()
    status, out = ask("", "small")
    assert status == 1 and "runs/small has no pruned model yet: `pollard run runs/small/recipe.yaml` makes it." in out


def test_ctrl_c_stops_the_answer_and_not_the_conversation(run: Path, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = iter([True, False])
    answer = chat.Speaker.answer

    def slow(self, *how):
        if next(interrupted):
            raise KeyboardInterrupt
        return answer(self, *how)

    monkeypatch.setattr(chat.Speaker, "answer", slow)
    status, out = ask("one\ntwo\n", "small", "--models", "pruned")
    assert status == 0 and "> one\nstopped\n> two\npruned (" in out


ANSWERS = [chat.Answer("one [bold]", 3, 0.5, True), chat.Answer("two", 4, 0.5, False)]


@pytest.mark.parametrize(("width", "beside"), [(120, True), (60, False)])
def test_answers_stand_side_by_side_where_there_is_room(width: int, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, highlight=False)
    monkeypatch.setattr(chat, "console", console)
    chat.show_answers(["original", "pruned"], ANSWERS, 4)
    assert any("one [bold]" in line and "two" in line for line in screen.getvalue().splitlines()) is beside


def test_the_keyboard_has_a_prompt_and_help_and_ends_with_ctrl_d(run: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "toolkit.cli", "chat", "small", "--models", "pruned", "--max-new-tokens", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=theirs, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    os.write(ours, b"/help\none\n\x04")
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert out.count(chat.HELP) == 2 and "pruned (2 tokens" in out


def test_a_run_is_found_by_path_and_by_name(run: Path) -> None:
    assert list(find_run("small").models) == list(find_run("runs/small").models) == ["original", "pruned"]


# What a conversation begins with in training it begins with here.
def test_the_tasks_system_prompt_stands_before_every_conversation(run: Path, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    render = chat.encode_prompt
    monkeypatch.setattr(chat, "encode_prompt", lambda t, e: asked.append([m["role"] for m in e.messages]) or render(t, e))
    model = run.parent.parent / "original"
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + template
    )
    (run / "recipe.yaml").write_text(dump_recipe(small_recipe(task=TASK | {"system": "Count with care."})))
    assert ask("one\n/new\ntwo\n", str(run), "--models", "pruned", "--max-new-tokens", "2")[0] == 0
    assert asked == [["system", "user"], ["system", "user"]]
