"""All prompts through a model, however little memory there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, raises, tiny_model
from small_run import kill_in_call

from toolkit.evaluation import AnswerLog, evaluate, generation
from toolkit.evaluation.memory import MAX_BATCH_SIZE, batch_size_for, measure_room, rows_that_fit
from toolkit.moe import load_model
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task

PATH = str(PLAYGROUND / "model")


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(TaskRecipe.model_validate({"name": "playground/arithmetic"}))


class Room:
    """Stands in for `generate`, on a GPU with room for so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows, self.tried, self.real = rows, [], generation.generate  # type: ignore[var-annotated]

    def __call__(self, model: Any, prompts: Any, *rest: Any) -> Any:
        self.tried.append(len(prompts))
        if len(prompts) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(model, prompts, *rest)


def test_where_memory_is_short_batches_are_halved_and_nothing_else_changes(
    model: Any, tokenizer: Any, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"examples": 20, "max_new_tokens": 48, "temperature": 1.0, "batch_size": 16}
    whole = evaluate(model, tokenizer, task, **settings)
    room = Room(4)
    monkeypatch.setattr(generation, "generate", room)
    assert evaluate(model, tokenizer, task, **settings).items == whole.items
    assert room.tried == [16, 8, 4, 4, 4, 4, 4]  # found once, then known
    assert "not enough GPU memory for 16 questions at a time: going on with 8" in capsys.readouterr().out


def test_where_one_question_is_too_much_the_way_out_is_told(
    model: Any, tokenizer: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "generate", Room(0))
    with raises("evaluation.memory", "1 question", "evaluation.max_new_tokens"):
        evaluate(model, tokenizer, task, examples=3)


def test_an_interrupted_evaluation_loses_one_batch_and_ends_as_if_undisturbed(
    model: Any, tokenizer: Any, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"examples": 20, "max_new_tokens": 48, "temperature": 1.0, "samples": 2, "batch_size": 8}
    whole = evaluate(model, tokenizer, task, **settings)
    calls = kill_in_call(3, generation, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, task, log=AnswerLog(tmp_path, "model"), **settings)
    resumed = evaluate(model, tokenizer, task, log=AnswerLog(tmp_path, "model"), **settings)
    assert resumed.items == whole.items
    assert len(calls) == 6  # five batches of 8, one of them begun twice
    judged_again = evaluate(model, tokenizer, task, log=AnswerLog(tmp_path, "model"), **settings)
    assert judged_again.items == whole.items and len(calls) == 6  # nothing is written twice
    assert judged_again.facts.tokens_per_second is None  # nothing was timed


def test_batches_do_not_change_what_is_drawn(model: Any, tokenizer: Any, task: Task) -> None:
    one, many = (
        evaluate(model, tokenizer, task, examples=10, max_new_tokens=48, temperature=1.5, samples=3, batch_size=size)
        for size in (3, 32)
    )
    assert one.items == many.items
    assert one.facts.samples == 3 and 0 <= one.facts.mean_score <= 1
    assert len({sample.prediction for sample in one.items[0].samples}) > 1


def test_text_after_a_stop_string_is_cut_and_the_answer_has_ended(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)  # it never ends by itself
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": q}) + "\n" for q in ("Why?", "Who is it?", "Sort: b a")))
    values = {"train": str(path), "test": str(path), "prompt": "{question}", "completion": "{answer}"}
    free = evaluate(model, tokenizer, Task(TaskRecipe.model_validate(values)), max_new_tokens=12)
    stop = free.items[0].prediction[5:8]
    found = evaluate(model, tokenizer, Task(TaskRecipe.model_validate(values | {"stop": [stop]})), max_new_tokens=12)
    for item, whole in zip(found.items, free.items, strict=True):
        assert item.prediction == whole.prediction.partition(stop)[0]
        assert item.ended == (stop in whole.prediction) and (item.ended or item.tokens == 12)
    assert found.items[0].tokens < 12


def test_the_gpu_with_the_least_room_decides(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free, taken = {0: 60 * 10**9, 1: 20 * 10**9}, {0: 10**7, 1: 10**8}  # by a prompt of 10 tokens
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda gpu: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: 5 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: 6 * 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: 5 * 10**9 + taken[gpu])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 80 * 10**9))
    number, there, row = measure_room(model, list(range(10)), 40, gpus=[0, 1])
    assert (there, row) == (21 * 10**9, 4 * 10**8 + 20 * 768)  # what is reserved and not allocated is free, too
    assert number == 32  # 0.8 · 21 / 0.4 = 42


def test_the_batch_size_is_what_was_asked_for_or_what_has_room(model: Any) -> None:
    assert str(batch_size_for(7, model, [[1]], 8)) == "7 questions at a time (as asked)"
    assert str(batch_size_for("auto", model, [[1]], 8)) == "32 questions at a time (auto: CPU)"
    assert [rows_that_fit(80e9, row) for row in (1e9, 90e9, 1e3)] == [64, 1, MAX_BATCH_SIZE]
    assert rows_that_fit(-1, 1e9) == 1


@pytest.mark.parametrize("stop", [[], [" ="]])
def test_the_same_greedy_answers_as_in_batches(tokenizer: Any, stop: list[str]) -> None:
    model, task = load_model(PATH), Task(TaskRecipe.model_validate({"name": "playground/arithmetic", "stop": stop}))
    batches, continuous = (
        evaluate(model, tokenizer, task, examples=12, max_new_tokens=40, backend=backend)
        for backend in ("transformers", "continuous")
    )
    assert continuous.items == batches.items
    assert (continuous.facts.backend, continuous.facts.batch_size) == ("continuous", None)


def test_what_does_not_end_is_cut_alike(tokenizer: Any) -> None:
    model, task = tiny_model("mixtral", vocab_size=768, eos_token_id=1), Task(TaskRecipe(name="playground/sorting"))
    batches, continuous = (
        evaluate(model, tokenizer, task, examples=5, max_new_tokens=6, backend=backend)
        for backend in ("transformers", "continuous")
    )
    assert continuous.items == batches.items
    assert [(item.tokens, item.ended) for item in continuous.items] == [(6, False)] * 5
