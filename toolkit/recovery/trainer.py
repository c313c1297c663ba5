"""TRL's trainer, with what the toolkit adds to its log, its evaluation and its checkpoints."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import SFTConfig, SFTTrainer

from toolkit.moe import RoutingMonitor
from toolkit.recipe.schema import Recipe
from toolkit.recovery.checkpoints import Keeper, check_space, kept, newest_first, space
from toolkit.recovery.roles import Training
from toolkit.recovery.selection import stopping
from toolkit.recovery.training_metrics import ProgressLines, Steps, TrainingMetrics
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk
from toolkit.runtime.progress import steps_bar


class RecoveryTrainer(SFTTrainer):
    """`numbers` measures what the log tells beside the loss. `accuracy`, where given, is measured with every dev loss: a
    function of the model, called on every rank. `finished` says that the checkpoint to go on from has nothing left to train.
    """

    numbers: TrainingMetrics
    accuracy: Callable[[PreTrainedModel], float] | None = None
    finished: bool = False

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with steps_bar("training") as show:
            self.add_callback(Steps(show))
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.numbers.read()
        super().log(logs, start_time)
        self._stop_if_broken(logs)

    def _stop_if_broken(self, logs: dict[str, float]) -> None:
        """Raises PollardError for a loss or a gradient that is no number. Saving comes after logging: what is saved is whole."""
        overflows = ("grad_norm",) if self.args.fp16 else ()  # fp16 looks for its scale by overflowing
        keys = [key for key in ("loss", "eval_loss", "grad_norm") if key not in overflows]
        broken = [key for key in keys if not math.isfinite(logs.get(key, 0.0))]
        if not broken:
            return
        what = {"loss": "training loss", "eval_loss": "dev loss", "grad_norm": "norm of the gradients"}[broken[0]]
        saved = newest_first(Path(str(self.args.output_dir)))
        kept = f"The last checkpoint is {saved[0]}" if saved else "No checkpoint had been made"
        rate = self.args.learning_rate
        raise PollardError(
            f"The {what} became {logs[broken[0]]} at step {self.state.global_step} of {self.state.max_steps}: training stops. "
            f"{kept}.\nTry a lower learning rate (finetuning.trainer.learning_rate={rate / 4:.1g}, now {rate:.1g}), a longer "
            "warm-up (finetuning.trainer.warmup_steps=0.1), clipping earlier (finetuning.trainer.max_grad_norm=0.3)"
            + (", or bfloat16 instead of float16 (model.dtype=bfloat16)." if self.args.fp16 else ".")
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if self.accuracy and output.metrics is not None:
            output.metrics["eval_accuracy"] = self.accuracy(cast(PreTrainedModel, self.model))
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.finished:  # the trainer itself would take one more step to notice
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir))
        with explain_full_disk(folder / f"checkpoint-{self.state.global_step}", lambda: kept(folder)):
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing for a checkpoint: DeepSpeed's own files hold the model, and gathering it once more costs time and disk."""
        if _internal_call:
            os.makedirs(str(output_dir), exist_ok=True)
        else:
            super().save_model(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None beside the checkpoints."""


def prepare(
    trainer: RecoveryTrainer, recipe: Recipe, training: Training, fingerprint: str, begun: tuple[Path, bool] | None,
    accuracy: Callable[[PreTrainedModel], float] | None,
) -> str | None:  # fmt: skip
    """Gives the trainer its measures, its lines and its checkpoints; returns the checkpoint to go on from, for `train`.

    Raises PollardError where the disk has no room for what will be written.
    """
    arguments, model = trainer.args, cast(nn.Module, trainer.model)
    limit = arguments.save_total_limit or sys.maxsize
    arguments.save_total_limit = None  # ours are removed once the next one is whole, not before
    trainer.numbers = TrainingMetrics(RoutingMonitor(model))
    trainer.accuracy = accuracy
    trainer.remove_callback(PrinterCallback)
    keeper = Keeper(fingerprint, limit)
    for callback in (trainer.numbers, ProgressLines(training.log), keeper, *stopping(recipe)):
        trainer.add_callback(callback)
    if arguments.save_strategy != "no":
        needed = space(model, str(arguments.optim), limit)
        if begun and begun[1]:  # the result is all that is still to be written
            needed = needed._replace(number=0)
        on_main(lambda: check_space(training.checkpoints, needed))
    if begun is None:
        return None
    path, trainer.finished = begun
    seen = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)).log_history
    trainer._total_train_tokens = int(max((entry["num_tokens"] for entry in seen if "num_tokens" in entry), default=0))
    say(f"  going on from {path}" + " (the training itself had finished)" * trainer.finished)
    return str(path)


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """What a trainer made inside the context writes for TensorBoard goes there, not to the checkpoints, which are removed."""
    own = os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder)) == str(folder)
    try:
        yield
    finally:
        if own:
            del os.environ["TENSORBOARD_LOGGING_DIR"]


def close_trackers(arguments: SFTConfig) -> None:
    """wandb's run outlives its trainer: what is trained next in this process would be written into it."""
    wandb = sys.modules.get("wandb")
    if wandb and "wandb" in (arguments.report_to or ()) and wandb.run:
        wandb.finish()
