"""Trackers get every number, the scores at the end, and cannot stop a run."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_run import small_folder, small_recipe
from transformers.integrations import integration_utils

from toolkit.pipeline.runner import run
from toolkit.recipe.schema import Recipe
from toolkit.recovery.trackers import GuardedTracker, close_trackers

TRAINER = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "trackers") as folder:
        yield folder


def recipe(name: str, **trainer: object) -> Recipe:
    finetuning = {"zero": 0, "examples": 8, "trainer": TRAINER | trainer}
    return small_recipe(name=name, evaluation__models=["original", "pruned", "recovered"], finetuning=finetuning)


class Tracker(integration_utils.TensorBoardCallback):
    """What transformers offers for a tracker, with a list as its server."""

    got: list[tuple[str, dict[str, float]]] = []  # noqa: RUF012  # of all of its objects: the trainer makes them
    fails: str = ""

    def __init__(self) -> None:
        pass

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.fails == "at once":
            raise ConnectionError("no route to the server")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if self.fails == "while it trains":
            raise ConnectionError("no route to the server")
        self.got.append((args.run_name, dict(logs)))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        pass


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Tracker]:
    from toolkit.recovery import settings, trackers

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    for module in (settings, trackers, integration_utils):
        monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.setattr(Tracker, "got", [])
    return Tracker


def test_the_scores_of_every_model_reach_the_tracker_once(folder: Path, tracker: type[Tracker]) -> None:
    asked = recipe("scored", report_to="tensorboard")
    run(asked)
    names = {name for name, _ in tracker.got}
    assert names == {"runs/scored/recovered", "runs/scored/scores"}  # the training, and the scores
    (scores,) = (logs for name, logs in tracker.got if name == "runs/scored/scores")
    for role in ("original", "pruned", "recovered"):
        assert scores[f"test_{role}/score_low"] <= scores[f"test_{role}/score"] <= scores[f"test_{role}/score_high"]
        assert scores[f"test_{role}/n"] == 6
    assert {"test_recovered-original/difference", "test_recovered-original/difference_low"} <= scores.keys()
    before = len(tracker.got)
    run(asked)  # everything is done: the report is shown again, and nothing is sent again
    assert len(tracker.got) == before


@pytest.mark.parametrize("when", ["at once", "while it trains"])
def test_a_tracker_that_fails_is_named_and_the_run_goes_on(
    when: str, folder: Path, tracker: type[Tracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "fails", when)
    name = f"failing-{when.replace(' ', '-')}"
    run(recipe(name, report_to="tensorboard"))
    out = capsys.readouterr().out
    assert out.count("the tracker Tracker failed") == 2  # of the training, and of the scores
    assert "ConnectionError: no route to the server" in out
    assert Path("runs", name, "report.html").exists() and Path("runs", name, "recovered", "model.safetensors").exists()


def test_a_guard_lets_through_what_works_and_is_silent_after_the_first_failure(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def log(number: int) -> int:
        calls.append(number)
        return 1 // number

    guarded = GuardedTracker(SimpleNamespace(on_log=log, name="mine"))
    assert (guarded.on_log(1), guarded.on_log(0), guarded.on_log(1), guarded.name) == (1, None, None, "mine")
    assert calls == [1, 0] and capsys.readouterr().out.count("warning") == 1


def test_our_numbers_reach_tensorboard(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(recipe("tracked", report_to="tensorboard", eval_strategy="steps", eval_steps=3))
    found = EventAccumulator("runs/tracked/tensorboard/recovered").Reload()
    steps = {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    of_training = ["loss", "tokens_per_second", "routing_entropy_mean", "routing_entropy/model.layers.1.mlp"]
    assert {name: steps[f"train/{name}"] for name in of_training} == {name: [1, 2, 3] for name in of_training}
    assert steps["eval/loss"] == [3]
    scores = EventAccumulator("runs/tracked/tensorboard/scores").Reload()
    assert {"test/original/score", "test/recovered/score_high"} <= set(scores.Tags()["scalars"])


# Else the control's numbers would go on where the recovered model's end: both train in one process.
@pytest.mark.parametrize("asked", [["wandb"], ["tensorboard"]])
def test_a_training_ends_its_wandb_run_and_nobody_elses(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run="a run", finish=lambda: finished.append("a run")))
    close_trackers(SimpleNamespace(report_to=asked))  # type: ignore[arg-type]
    assert finished == ["a run"] * (asked == ["wandb"])
