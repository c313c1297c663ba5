"""TRL's trainer, with what the toolkit adds to its log, its evaluation and its checkpoints.

While a model trains, one line per logged step is printed; training_log.jsonl and the trackers get every number:

step    40/300 (13 %)  loss 0.4183  routing entropy 1.93 bits (least 1.71)  8,214 tokens/s  0.21 s/step, 55 s left

At a terminal, a bar below shows the steps between two lines.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import SFTTrainer

from toolkit.moe import RoutingMonitor, check_kept_apart, real_positions
from toolkit.recipe.schema import Recipe
from toolkit.recovery.checkpoints import (
    CheckpointRotation,
    Resumable,
    check_disk_space,
    disk_space_needed,
    newest_first,
    resume_advice,
)
from toolkit.recovery.method import Training
from toolkit.recovery.packing import Batch, PackingCollator
from toolkit.recovery.trackers import guard_trackers
from toolkit.runtime.distributed import gather, is_main, on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, write_text
from toolkit.runtime.progress import duration, steps_bar

ENTROPY = "routing_entropy"


class TrainingMetrics(TrainerCallback):
    """Measures between two logs. `read` is collective: every rank calls it, and all get the same numbers."""

    def __init__(self, routing: RoutingMonitor) -> None:
        self.routing = routing
        self.since = time.monotonic()
        self.peak = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.routing.counting = (state.global_step + 1) % max(state.logging_steps, 1) == 0  # the step that will be logged

    def read(self) -> dict[str, float]:
        """Tokens per second of all ranks, the largest GPU memory so far (bytes), and in bits the entropy of each block's
        use of its experts in the logged step, their mean and the least."""
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        every = gather((*self.routing.take(), self.peak))
        now, before = time.monotonic(), self.since
        self.since = now
        found: dict[str, float] = {"tokens_per_second": sum(tokens for _, tokens, _ in every) / max(now - before, 1e-9)}
        if self.peak:
            found["gpu_memory_bytes"] = max(peak for _, _, peak in every)
        entropies = {
            name: entropy_bits([sum(counts) for counts in zip(*(counts[name] for counts, _, _ in every), strict=True)])
            for name in every[0][0]
        }
        if entropies:
            found[f"{ENTROPY}_mean"] = sum(entropies.values()) / len(entropies)
            found[f"{ENTROPY}_min"] = min(entropies.values())
        return found | {f"{ENTROPY}/{name}": bits for name, bits in entropies.items()}


def entropy_bits(counts: list[int]) -> float:
    """−Σ p log2 p of the shares p: log2(E) where all E experts are used alike, 0 where one serves every token."""
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts if count) + 0.0


class StepProgress(TrainerCallback):
    """Calls `show(step, steps)` after every step."""

    def __init__(self, show: Callable[[float, float], None]) -> None:
        self.show = show

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, state.max_steps)


class ProgressLines(TrainerCallback):
    """Prints a line per log on rank 0, and writes the log to training_log.jsonl."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if is_main():  # a resumed training has the lines up to its checkpoint, and no later ones
            write_text(self.log, "".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not is_main():
            return
        with (
            explain_full_disk(self.log, lambda: resume_advice(Path(args.output_dir))),
            self.log.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(state.log_history[-1]) + "\n")
        logs = logs or {}
        step = f"  step {state.global_step:>5}/{state.max_steps} ({state.global_step / max(state.max_steps, 1):.0%})".replace(
            "%", " %"
        )
        if "loss" in logs:
            per_step = (time.monotonic() - self.started) / max(state.global_step - self.first_step, 1)
            left = per_step * (state.max_steps - state.global_step)
            say(f"{step}  loss {logs['loss']:.4f}{_details(logs)}  {per_step:.2f} s/step, {duration(left)} left")
        elif "eval_loss" in logs:
            accuracy = f"  dev accuracy {logs['eval_accuracy']:.1%}" if "eval_accuracy" in logs else ""
            say(f"{step}  dev loss {logs['eval_loss']:.4f}{accuracy}")


def _details(logs: dict[str, float]) -> str:
    text = ""
    if f"{ENTROPY}_mean" in logs:
        text += f"  routing entropy {logs[f'{ENTROPY}_mean']:.2f} bits (least {logs[f'{ENTROPY}_min']:.2f})"
    if "tokens_per_second" in logs:
        text += f"  {logs['tokens_per_second']:,.0f} tokens/s"
    if "gpu_memory_bytes" in logs:
        text += f"  {logs['gpu_memory_bytes'] / 2**30:.1f} GiB"
    return text


class RecoveryTrainer(SFTTrainer):
    """SFTTrainer that logs more, stops when a number is not finite, and keeps its checkpoints in DeepSpeed's form."""

    training_metrics: TrainingMetrics
    """What is logged beside the loss."""
    accuracy: Callable[[PreTrainedModel], float] | None = None
    """Measured with every dev loss, where given: a function of the model, called on every rank."""
    finished: bool = False
    """The checkpoint to resume from has nothing left to train."""

    def __init__(self, *args: Any, packing: bool = False, **kwargs: Any) -> None:
        """`packing`: the training set's examples, which have a column `example`, stand in as few rows as they need."""
        super().__init__(*args, **kwargs)
        self.untried = packing  # whether the model keeps the examples of a row apart
        if packing:
            self.args.remove_unused_columns = False  # `example` must reach the collator
            self.data_collator = PackingCollator(self.data_collator)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with steps_bar("training") as show:
            self.add_callback(StepProgress(show))
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.training_metrics.read()
        super().log(logs, start_time)
        self._stop_if_broken(logs)

    def _stop_if_broken(self, logs: dict[str, float]) -> None:
        """Raises PollardError for a loss or a gradient that is not finite. Saving comes after logging: what is saved is sound."""
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
            + (", or bfloat16 instead of float16 (model.dtype=bfloat16)." if self.args.fp16 else "."),
            code="recovery.not-finite",
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if self.accuracy and output.metrics is not None:
            output.metrics["eval_accuracy"] = self.accuracy(cast(PreTrainedModel, self.model))
        return output

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        before = self._total_train_tokens
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "attention_mask" not in inputs:  # packed, where TRL counts a row's positions
            tokens = self.accelerator.gather(real_positions(inputs["position_ids"]).sum()).sum()
            self._total_train_tokens = before + int(tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.finished:  # the trainer itself would take one more step to notice
            self.control.should_training_stop = True
            return
        if self.untried:  # here DeepSpeed has the model
            config = cast(PreTrainedModel, self.model).config.get_text_config()
            check_kept_apart(self.model_wrapped, int(config.vocab_size), self.args.device)
            self.untried = False
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir))
        with explain_full_disk(folder / f"checkpoint-{self.state.global_step}", lambda: resume_advice(folder)):
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes nothing for a checkpoint: DeepSpeed's own files hold the model, and gathering it again costs time and disk."""
        if _internal_call:
            os.makedirs(str(output_dir), exist_ok=True)
        else:
            super().save_model(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none into the checkpoints."""


def prepare_trainer(
    trainer: RecoveryTrainer, recipe: Recipe, training: Training, fingerprint: str, resumable: Resumable | None,
    accuracy: Callable[[PreTrainedModel], float] | None,
) -> str | None:  # fmt: skip
    """Adds metrics, log lines and checkpoints to the trainer; returns the checkpoint to resume from, for `train`.

    Raises PollardError where the disk has no room for what will be written.
    """
    arguments, model = trainer.args, cast(nn.Module, trainer.model)
    limit = arguments.save_total_limit or sys.maxsize
    arguments.save_total_limit = None  # CheckpointRotation removes old ones once the next is complete, not before
    trainer.training_metrics = TrainingMetrics(RoutingMonitor(model))
    trainer.accuracy = accuracy
    trainer.remove_callback(PrinterCallback)
    guard_trackers(trainer)
    rotation = CheckpointRotation(fingerprint, limit)
    for callback in (trainer.training_metrics, ProgressLines(training.log), rotation, *_early_stopping(recipe)):
        trainer.add_callback(callback)
    if arguments.save_strategy != "no":
        needed = disk_space_needed(model, str(arguments.optim), limit)
        if resumable and resumable.finished:  # the result is all that is still to be written
            needed = needed._replace(number=0)
        on_main(lambda: check_disk_space(training.checkpoints, needed))
    if resumable is None:
        return None
    path, trainer.finished = resumable
    logged = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)).log_history
    trainer._total_train_tokens = int(max((entry["num_tokens"] for entry in logged if "num_tokens" in entry), default=0))
    say(f"  going on from {path}" + " (the training itself had finished)" * trainer.finished)
    return str(path)


def _early_stopping(recipe: Recipe) -> list[EarlyStoppingCallback]:
    patience = recipe.finetuning.early_stopping
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []
