"""A small real HTTP server in a thread: it answers with the playground model, or as a script says."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import raises
from serving import Reply, playing, serving

from toolkit.evaluation import AnswerLog, Decoding, Questions, Scores, evaluate, evaluate_with, server
from toolkit.evaluation.server import ServerWriter
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.evaluation import ServersRecipe
from toolkit.tasks import Task, encode_prompt

COUNT, GREEDY = 8, Decoding(48)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(TaskRecipe.model_validate({"name": "playground/arithmetic"}))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRIES", 2)
    monkeypatch.setattr(server, "PAUSE", 0.01)


def asked(url: str, tokenizer: Any, task: Task, folder: Path | None = None, decoding: Decoding = GREEDY, **asking: Any) -> Scores:
    servers = ServersRecipe.model_validate({"original": url} | asking)
    assert servers.original
    writer = ServerWriter(servers.original, servers, tokenizer, decoding)
    log = AnswerLog(folder, "server") if folder else None
    return evaluate_with(writer, tokenizer, Questions.of(task, "test", COUNT), decoding, log)


@pytest.mark.parametrize("prompt", ["tokens", "text", "chat"])
def test_a_server_with_the_same_model_says_the_same(model: Any, tokenizer: Any, task: Task, prompt: str) -> None:
    seen: list[Any] = []
    with serving(playing(model, tokenizer, seen)) as url:
        found = asked(url, tokenizer, task, prompt=prompt)
    assert found.items == evaluate(model, tokenizer, task, examples=COUNT, max_new_tokens=48).items
    path, body = seen[0]
    assert path == ("/v1/chat/completions" if prompt == "chat" else "/v1/completions")
    assert {"model": "playground", "max_tokens": 48, "temperature": 0.0}.items() <= body.items()
    if prompt != "chat":
        prompts = [encode_prompt(tokenizer, example) for example in task.examples("test")[:COUNT]]
        expected = prompts if prompt == "tokens" else [tokenizer.decode(ids) for ids in prompts]
        assert sorted(body["prompt"] for _, body in seen) == sorted(expected)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_are_open_as_were_asked_for(model: Any, tokenizer: Any, task: Task, concurrency: int) -> None:
    well, lock, now, most = playing(model, tokenizer, []), threading.Lock(), 0, 0

    def reply(path: str, body: dict[str, Any]) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        answer = well(path, body)
        with lock:
            now -= 1
        return answer

    with serving(reply) as url:
        asked(url, tokenizer, task, concurrency=concurrency)
    assert most == concurrency


def test_stop_strings_and_endless_answers_are_told_alike(model: Any, tokenizer: Any, task: Task) -> None:
    for decoding in (Decoding(48, stop=(" =",)), Decoding(4)):
        with serving(playing(model, tokenizer, [])) as url:
            found = asked(url, tokenizer, task, decoding=decoding)
        task.stop = list(decoding.stop)
        own = evaluate(model, tokenizer, task, examples=COUNT, max_new_tokens=decoding.max_new_tokens)
        task.stop = []
        assert [(i.prediction, i.ended) for i in found.items] == [(i.prediction, i.ended) for i in own.items]


def test_every_sample_has_a_seed_of_its_own_the_same_ones_each_time(model: Any, tokenizer: Any, task: Task) -> None:
    seeds = []
    for _ in range(2):
        seen: list[Any] = []
        with serving(playing(model, tokenizer, seen)) as url:
            asked(url, tokenizer, task, decoding=Decoding(8, temperature=0.5, samples=2, seed=3))
        seeds.append(sorted(body["seed"] for _, body in seen))
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 2 * COUNT


class Script:
    """Fails where `fault` says so, counting the requests; else answers as `well` does."""

    def __init__(self, well: Callable[[str, dict[str, Any]], Reply], fault: Callable[[int], Reply | None]) -> None:
        self.well, self.fault, self.count, self.lock = well, fault, 0, threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> Reply:
        if path.endswith("/models"):
            return self.well(path, body)
        with self.lock:
            self.count += 1
            number = self.count
        return self.fault(number) or self.well(path, body)


def slow(number: int) -> None:
    if number == 2:
        time.sleep(4)


FAULTS: dict[str, Callable[[int], Reply | None]] = {
    "an error of its own": lambda number: (500, b'{"error": {"message": "out of cards"}}') if number in (2, 3) else None,
    "too busy": lambda number: (429, b"{}") if number == 2 else None,
    "no JSON": lambda number: (200, b"<html>gateway</html>") if number in (2, 5) else None,
    "no answer in it": lambda number: (200, b'{"choices": []}') if number in (2, 5) else None,
    "silence": slow,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_asked_again(model: Any, tokenizer: Any, task: Task, fault: str) -> None:
    with serving(Script(playing(model, tokenizer, []), FAULTS[fault])) as url:
        found = asked(url, tokenizer, task, concurrency=1, timeout=3 if fault == "silence" else 60)
    assert found.items == evaluate(model, tokenizer, task, examples=COUNT, max_new_tokens=48).items


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_stays_ill_stops_the_run_and_nothing_is_lost(
    model: Any, tokenizer: Any, task: Task, tmp_path: Path, concurrency: int
) -> None:
    well = playing(model, tokenizer, [])
    ill = Script(well, lambda number: (503, b'{"error": {"message": "no room"}}') if number > 4 else None)
    with serving(ill) as url, raises("server.no-answer", url, "item ", "3 times", "no room"):
        asked(url, tokenizer, task, tmp_path, concurrency=concurrency)
    seen: list[Any] = []
    with serving(playing(model, tokenizer, seen)) as url:
        found = asked(url, tokenizer, task, tmp_path, concurrency=concurrency)
    assert len(seen) == COUNT - 4  # four were answered, and are not asked again
    assert found.items == evaluate(model, tokenizer, task, examples=COUNT, max_new_tokens=48).items


def test_what_a_server_refuses_is_told_at_once(model: Any, tokenizer: Any, task: Task) -> None:
    script = Script(playing(model, tokenizer, []), lambda number: (404, b'{"error": {"message": "no such model: x"}}'))
    with serving(script) as url, raises("server.refuses", "item ", "404", "no such model: x"):
        asked(url, tokenizer, task, concurrency=1)
    assert script.count == 1


def test_nobody_there_is_one_message(tokenizer: Any, task: Task) -> None:
    with serving(lambda path, body: (200, b"{}")) as url:
        pass
    with raises("server.no-answer", url, "the list of its models"):
        asked(url, tokenizer, task)


def test_a_server_of_several_models_wants_a_name(tokenizer: Any, task: Task) -> None:
    listed = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in "ab"]}).encode()
    with (
        serving(lambda path, body: (200, listed)) as url,
        raises("server.several-models", "2 models (a, b)"),
    ):
        asked(url, tokenizer, task)


def test_a_missing_client_is_told_with_its_extra(tokenizer: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with raises("server.no-client", "pip install 'pollard-moe[server]'"):
        asked("http://127.0.0.1:1/v1", tokenizer, task)
