"""What a benchmark counts, and in which order it measures."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import tiny_model

from toolkit.evaluation import speed
from toolkit.evaluation.speed import BatchTimes, BenchmarkedModel, ModelSize, Workload, benchmark, time_batch


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """A benchmark collects garbage before every batch, which takes long over all that the libraries hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LOAD = Workload(batch_sizes=(1, 3), prompt_tokens=9, new_tokens=4, repeats=3)
TIMES = BatchTimes(prefill=100.0, decode=10.0, first_token=0.5)


def entrant(name: str, parameters: int = 100, weight_bytes: int = 1000, model: Any = None) -> BenchmarkedModel:
    size = ModelSize(parameters, 50, 4 * parameters, path=None, random=True)
    return BenchmarkedModel(name, size, weight_bytes, lambda: model or tiny_model("mixtral"))


def test_every_prompt_is_read_and_no_end_token_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = tiny_model("mixtral"), []
    model.generation_config.eos_token_id = list(range(64))  # whatever it writes would be the end
    theirs = model.generation_config
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    found = time_batch(model, 3, 9, 4)
    assert shapes == [(3, 9), (3, 1), (3, 1), (3, 1)]
    assert model.generation_config is theirs
    assert found.prefill == pytest.approx(27 / found.first_token) and found.decode > 0


def test_models_are_measured_in_turn_after_one_turn_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order, seen = [], {}

    def noting(model: Any, batch_size: int, *_: int) -> BatchTimes:
        name = seen[id(model)]
        order.append(f"{name}{batch_size}")
        turn = order.count(f"{name}{batch_size}") - 1
        factor = (turn + 1) * (2 if name == "b" else 1)
        return BatchTimes(*(factor * value for value in TIMES[:3]))

    models = {name: tiny_model("mixtral") for name in "ab"}
    seen.update({id(model): name for name, model in models.items()})
    monkeypatch.setattr(speed, "time_batch", noting)
    found = benchmark([entrant("a", model=models["a"]), entrant("b", 50, model=models["b"])], LOAD)
    assert order == ["a1", "a3", "b1", "b3"] * 4
    a, b = found.to_json()["models"]
    assert a["batches"][0]["prefill"] == [300, 200, 400]  # the first turn does not count
    assert b["batches"][1]["ratios"]["decode"] == [2, 2, 2] and a["batches"][0]["ratios"]["prefill"] == [1, 1, 1]
    assert b["ratios"] == {"parameters": 0.5, "active_parameters": 1, "checkpoint_bytes": 0.5}


@pytest.mark.parametrize(("room", "loads"), [(10**9, 1), (1500, 4)])
def test_models_that_do_not_fit_together_are_loaded_for_every_turn(
    monkeypatch: pytest.MonkeyPatch, room: int, loads: int
) -> None:
    loaded = []
    monkeypatch.setattr(speed, "free_memory", lambda where: room)
    monkeypatch.setattr(speed, "time_batch", lambda *_: TIMES)
    entrants = [entrant(name)._replace(load=lambda name=name: loaded.append(name) or tiny_model("mixtral")) for name in "ab"]
    assert benchmark(entrants, LOAD).together == (loads == 1)
    assert loaded == ["a", "b"] * loads


def test_a_batch_that_does_not_fit_is_told_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(model: Any, batch_size: int, *_: int) -> BatchTimes:
        if batch_size == 3:
            raise torch.OutOfMemoryError
        return TIMES

    monkeypatch.setattr(speed, "time_batch", small)
    (model,) = benchmark([entrant("a")], LOAD).models
    assert [batch.fits for batch in model.batches] == [True, False]
    assert (model.batches[0].peak_memory_bytes or 0) >= 1000
    assert model.batches[1].to_json() == {"batch_size": 3, "fits": False}
