import json
import sys
from pathlib import Path

import pytest
from conftest import PLAYGROUND
from rich.console import Console

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.report.inspection import rendered_example
from toolkit.tasks import Task, encode
from toolkit.tasks.token_checks import lengths_of


@pytest.fixture
def preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `pollard preview` on a task of 20 lines, in this process: exit status and what it printed."""
    rows = [{"q": f"Reverse: {'a ' * (i + 1)}", "a": f"#### {'a ' * (i + 1)}".strip()} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"train": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "rows.jsonl"), "prompt": "{q}", "completion": "{a}"}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "p", "model": str(PLAYGROUND / "model"), "task": task}))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", "preview", str(tmp_path / "r.yaml"), *arguments])
        return cli.main(), capsys.readouterr().out

    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    return run


def test_examples_are_shown_as_the_model_sees_them_with_the_completion_marked(preview) -> None:
    status, out = preview("--examples", "1", "task.shots=1")
    assert status == 0 and "\x1b" not in out
    assert "1 solved example before each question; judged by exact" in out
    line = next(line for line in out.splitlines() if line.startswith("<|user|>"))
    assert line.endswith("<|user|>Reverse: a <|assistant|>⟦#### a<|end|>⟧") and line.count("<|user|>") == 2


def test_lengths_of_every_split_are_told_and_what_exceeds_the_limits(preview) -> None:
    status, out = preview("finetuning.max_length=20", "calibration.max_length=30")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert [line[:2] for line in lines if line[:1] and line[0] in ("train", "dev", "test")] == [
        ["train", "16"], ["dev", "4"], ["test", "20"],
    ]  # fmt: skip
    task, tokenizer = (
        Task(TaskRecipe(**json.loads(Path(sys.argv[2]).read_text())["task"])),
        load_tokenizer(str(PLAYGROUND / "model")),
    )
    whole = [len(encode(tokenizer, example).input_ids) for example in task.examples("test")]
    assert next(line for line in lines if line[:1] == ["test"])[-3:-1] == [
        str(sum(length > 30 for length in whole)), str(sum(length > 20 for length in whole)),
    ]  # fmt: skip


def test_the_95th_percentile_bounds_95_of_100() -> None:
    tokenizer = load_tokenizer(str(PLAYGROUND / "model"))
    found = lengths_of(tokenizer, Task(TaskRecipe(name="playground/sorting")).examples("test")[:200])
    assert (
        found.prompt is not None
        and found.prompt.shortest <= found.prompt.median <= found.prompt.percentile_95 <= found.prompt.longest
    )
    prompts = [encode(tokenizer, e).prompt_length for e in Task(TaskRecipe(name="playground/sorting")).examples("test")[:200]]
    assert sum(length <= found.prompt.percentile_95 for length in prompts) >= 190
    assert lengths_of(tokenizer, []) == (None, None, [], [])


def test_colours_stand_for_the_marks_where_there_are_some() -> None:
    tokenizer, example = (
        load_tokenizer(str(PLAYGROUND / "model")),
        Task(TaskRecipe(name="playground/sorting")).examples("test")[0],
    )
    seen = rendered_example(tokenizer, example, coloured=True)
    assert "⟦" not in seen.plain and [seen.plain[span.start : span.end] for span in seen.spans] == [
        f"{example.completion}<|end|>"
    ]
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as capture:
        console.print(seen)
    assert "\x1b[30;42m" in capture.get()


def test_a_wrong_gold_field_is_told_with_the_line(preview) -> None:
    status, out = preview("task.answer={solution}")
    assert status == 1 and "rows.jsonl, line 1: no field `solution`. Fields there: q, a." in out


def test_a_task_without_a_test_split_is_told(preview) -> None:
    status, out = preview("task.test=null")
    assert status == 1 and "Task rows has no test data: give `task.test`, a data file" in out


def test_tasks_lists_each_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.tasks import PRESETS

    monkeypatch.setattr(sys, "argv", ["pollard", "tasks"])
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    assert cli.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS) and all(len(line.split()) > 3 for line in lines)
