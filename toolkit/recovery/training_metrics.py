"""What is said while a model trains: one line per logged step, and everything in training_log.jsonl and the trackers.

step    40/300 (13 %)  loss 0.4183  routing entropy 1.93 bits (least 1.71)  8,214 tokens/s  0.21 s/step, 55 s left

At a terminal, a bar below shows the steps between two lines.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from toolkit.moe import RoutingMonitor
from toolkit.recovery.checkpoints import kept
from toolkit.runtime.distributed import gather, is_main, say
from toolkit.runtime.files import explain_full_disk, write_text
from toolkit.runtime.progress import duration

ENTROPY = "routing_entropy"


class TrainingMetrics(TrainerCallback):
    """Measures between two logs. `read` is collective: every rank calls it, and all get the same numbers."""

    def __init__(self, use: RoutingMonitor) -> None:
        self.use = use
        self.since = time.monotonic()
        self.peak = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.use.counting = (state.global_step + 1) % max(state.logging_steps, 1) == 0  # the step that will be logged

    def read(self) -> dict[str, float]:
        """Tokens per second of all ranks, the largest GPU memory so far (bytes), and in bits the entropy of each block's
        use of its experts in the logged step, their mean and the least."""
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        every = gather((*self.use.take(), self.peak))
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


class Steps(TrainerCallback):
    """Tells `show` the step that is done, and of how many."""

    def __init__(self, show: Callable[[float, float], None]) -> None:
        self.show = show

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, state.max_steps)


class ProgressLines(TrainerCallback):
    """Prints a line per log on rank 0, and keeps training_log.jsonl as long as the log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if is_main():  # a run that goes on has the lines of the checkpoint it goes on from, and no later ones
            write_text(self.log, "".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not is_main():
            return
        with explain_full_disk(self.log, lambda: kept(Path(args.output_dir))), self.log.open("a", encoding="utf-8") as file:
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
    said = ""
    if f"{ENTROPY}_mean" in logs:
        said += f"  routing entropy {logs[f'{ENTROPY}_mean']:.2f} bits (least {logs[f'{ENTROPY}_min']:.2f})"
    if "tokens_per_second" in logs:
        said += f"  {logs['tokens_per_second']:,.0f} tokens/s"
    if "gpu_memory_bytes" in logs:
        said += f"  {logs['gpu_memory_bytes'] / 2**30:.1f} GiB"
    return said
