"""The stage that evaluates, in a run: who answers, what is kept, what is done again."""

from pathlib import Path
from typing import Any

import pytest
from serving import playing, serving
from small_run import kill_in_call, make_small, small_recipe

from toolkit.evaluation import generation, server
from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline.runner import run
from toolkit.runtime.errors import PollardError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_small(tmp_path)
    return tmp_path


def recipe(name: str, **evaluation: Any) -> Any:
    return small_recipe(name=name, evaluation={"models": ["original"], "max_new_tokens": 4, "batch_size": 3} | evaluation)


def predictions(folder: Path, name: str) -> bytes:
    return (folder / "runs" / name / "evaluation" / "original.predictions.jsonl").read_bytes()


def test_a_server_that_has_the_model_leaves_the_same_predictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe("own"))
    model, tokenizer = load_model("original"), load_tokenizer("original")
    with serving(playing(model, tokenizer, [])) as url:
        run(recipe("served", backend="server", servers={"original": url}))
        assert f"asking playground at {url}" in capsys.readouterr().out
    assert predictions(folder, "served") == predictions(folder, "own")


def test_a_server_that_falls_ill_leaves_a_run_that_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRIES", 1)
    seen: list[Any] = []
    well = playing(load_model("original"), load_tokenizer("original"), seen)
    with serving(lambda path, body: (500, b"{}") if len(seen) == 2 else well(path, body)) as url:
        asking = recipe("ill", backend="server", servers={"original": {"url": url, "model": "playground"}, "concurrency": 1})
        with pytest.raises(PollardError, match="does not answer"):
            run(asking)
        seen.append("the server is well again")
        run(asking)
    run(recipe("own"))
    assert len(seen) == 7 and predictions(folder, "ill") == predictions(folder, "own")  # six questions, each asked once


def test_another_batch_size_answers_nothing_anew_and_other_decoding_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe("small"))
    run(recipe("small", batch_size="auto"))
    assert "evaluate/original    done already" in capsys.readouterr().out
    run(recipe("small", temperature=1.0))
    assert "what it depends on has changed: done again" in capsys.readouterr().out


def test_fresh_answers_anew_what_a_kill_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kill_in_call(2, generation, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(recipe("small"))
    left = folder / "runs" / "small" / "evaluation" / "original.answers"
    assert len((left / "0.jsonl").read_text().splitlines()) == 1 + 3
    run(recipe("small"), fresh=True)
    assert len(calls) == 4 and not left.exists()  # two batches, both of them anew


def test_an_original_that_cannot_do_the_task_is_told_when_its_score_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "test.jsonl").write_text("\n".join(lines + lines) + "\n")  # 120 questions, which a random model answers wrongly
    run(recipe("hardly", batch_size=60, max_new_tokens=1, models=["original", "pruned"], off_task=False))
    out = capsys.readouterr().out
    told = "warning: The original itself can hardly do the task"
    assert told in out.partition("evaluate/pruned      answer")[0] and told in out.partition("evaluate/pruned      answer")[2]
