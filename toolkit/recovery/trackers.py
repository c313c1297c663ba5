"""Trackers (`finetuning.trainer.report_to`: tensorboard, wandb, mlflow, …): the numbers of every training and, at the end, the
scores.

All of it goes through transformers' own callbacks, of which each knows one tracker. None of them is worth a run: where one
fails (its server is gone, its disk is full) that is said once, and the run goes on without it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.markup import escape
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from toolkit.runtime.distributed import say

SCORES = "scores"  # the run of its own, and TensorBoard's folder, that the scores are in


class GuardedTracker:
    """A tracker's callback whose failures are said, once, and do not reach the trainer."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.failed = callback, False

    def __getattr__(self, event: str) -> Any:
        found = getattr(self.callback, event)
        return self._guarded(found) if event.startswith("on_") else found

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **more: Any) -> Any:
            if self.failed:
                return None
            try:
                return call(*arguments, **more)
            except Exception as error:
                self.failed = True
                name = type(self.callback).__name__.removesuffix("Callback")
                first = (str(error).strip().splitlines() or [""])[0]
                what = escape(f"{type(error).__name__}: {first}")
                say(f"  [yellow]warning:[/] the tracker {name} failed and gets no more numbers; the run goes on ({what})")
                return None

        return guarded


def guard_trackers(trainer: Trainer) -> None:
    """Puts a guard around each of the trainer's trackers."""
    kinds, handler = tuple(INTEGRATION_TO_CALLBACK.values()), trainer.callback_handler
    handler.callbacks = [GuardedTracker(each) if isinstance(each, kinds) else each for each in handler.callbacks]


def send_scores(arguments: TrainingArguments, scores: Mapping[str, float], folder: Path) -> None:
    """Sends the scores of a finished run to each tracker of its training's `arguments`, as a run of its own that is called
    `folder`/scores; `folder` is the run directory. A key such as `recovered/score` becomes `test/recovered/score`, in MLflow
    `test_recovered/score`. For rank 0. Trackers that are not installed, or fail, are named and left out."""
    arguments.run_name = f"{folder}/{SCORES}"
    state, control = TrainerState(is_world_process_zero=True, is_local_process_zero=True), TrainerControl()
    named = {f"test_{key}": value for key, value in scores.items()}  # transformers' prefix for what is no training
    with tensorboard_in(folder / "tensorboard" / SCORES), _without_checkpoints():
        installed: Any = get_available_reporting_integrations()
        for name in arguments.report_to or ():
            if name not in installed:
                say(f"  [yellow]warning:[/] {escape(name)} is not installed here: it gets no scores")
                continue
            tracker = GuardedTracker(INTEGRATION_TO_CALLBACK[name]())
            tracker.on_train_begin(arguments, state, control, model=None)
            tracker.on_log(arguments, state, control, logs=dict(named), model=None)
            tracker.on_train_end(arguments, state, control, model=None)
            if not tracker.failed:
                say(f"  scores: {len(scores)} numbers to {escape(name)}")
        with suppress(Exception):
            close_trackers(arguments)


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """A trainer made inside the context writes its TensorBoard files to `folder`, not to the checkpoints, which are removed."""
    own = os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder)) == str(folder)
    try:
        yield
    finally:
        if own:
            del os.environ["TENSORBOARD_LOGGING_DIR"]


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """wandb would look for a model to upload."""
    asked = os.environ.pop("WANDB_LOG_MODEL", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["WANDB_LOG_MODEL"] = asked


def close_trackers(arguments: TrainingArguments) -> None:
    """Ends wandb's run, which would otherwise go on into the next training of this process."""
    wandb = sys.modules.get("wandb")
    if wandb and "wandb" in (arguments.report_to or ()) and wandb.run:
        wandb.finish()
