"""What the toolkit adds to a training step: `recover` beside a bare TRL script with the same settings.

    python benchmarks/training.py --hidden 512 --steps 30 --repeats 5

Both train the same generated checkpoint on the same examples, in turns, in one process; the speed is the trainer's own
(steps per second between its first and its last step). Exit status 1 where the median ratio is below the target.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from playground_shaped import make
from transformers import AutoModelForCausalLM, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer

from toolkit.moe import load_tokenizer
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.recovery.recover import recover
from toolkit.recovery.settings import sft_config
from toolkit.runtime.distributed import start, stop
from toolkit.runtime.zero import start_deepspeed
from toolkit.tasks import Task, encode_all

TARGET = 0.97


def recipe_for(steps: int, batch: int) -> Recipe:
    trainer = {
        "max_steps": steps, "per_device_train_batch_size": batch, "logging_steps": 10, "eval_strategy": "no",
        "save_strategy": "no",
    }  # fmt: skip
    finetuning = {"zero": 2, "trainer": trainer}
    return Recipe.model_validate({"name": "run", "model": "m", "task": "playground/arithmetic", "finetuning": finetuning})


class Trained(NamedTuple):
    speed: float  # steps per second
    loss: float


def bare(recipe: Recipe, run: RunDirectory) -> Trained:
    """A script as one would write it."""
    set_seed(recipe.seed)
    arguments = sft_config(recipe, run.checkpoints)
    tokenizer = load_tokenizer(str(run.pruned))
    encoded, _ = encode_all(tokenizer, Task(recipe.task).examples("train"), recipe.finetuning.max_length)
    rows = [
        {"input_ids": e.input_ids, "labels": [t if c else -100 for t, c in zip(e.input_ids, e.completion_mask, strict=True)]}
        for e in encoded
    ]
    model = AutoModelForCausalLM.from_pretrained(run.pruned, dtype=torch.float32)
    try:
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        metrics = trainer.train().metrics
        return Trained(metrics["train_steps_per_second"], metrics["train_loss"])
    finally:
        unset_hf_deepspeed_config()


def own(recipe: Recipe, run: RunDirectory) -> Trained:
    recover(recipe, str(run.path.parent))
    last = json.loads(run.training_log.read_text().splitlines()[-1])
    return Trained(last["train_steps_per_second"], last["train_loss"])


def measure(folder: Path, recipe: Recipe, repeats: int) -> list[float]:
    """Per repeat the speed of `recover` as a share of the bare script's; who comes first changes from repeat to repeat. The
    losses must be the same: other examples would be other work."""
    run, ratios = RunDirectory(recipe.name, folder), []
    for number in range(repeats):
        found = {}
        for train in (bare, own) if number % 2 else (own, bare):
            with contextlib.redirect_stdout(io.StringIO()):
                found[train] = train(recipe, run)
        if not math.isclose(found[own].loss, found[bare].loss, rel_tol=1e-4):
            raise SystemExit(f"not the same training: loss {found[own].loss} with recover, {found[bare].loss} with the script")
        ratios.append(found[own].speed / found[bare].speed)
        print(f"repeat {number + 1}: bare {found[bare].speed:.2f} steps/s, recover {found[own].speed:.2f}", flush=True)
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--target", type=float, default=TARGET, help="the least median ratio that passes")
    options = parser.parse_args()
    start()
    try:
        start_deepspeed()
        with tempfile.TemporaryDirectory() as temporary:
            recipe = recipe_for(options.steps, options.batch)
            make(RunDirectory(recipe.name, temporary).pruned, options.layers, options.hidden, experts=4)
            ratios = measure(Path(temporary), recipe, options.repeats)
    finally:
        stop()
    median = statistics.median(ratios)
    print(f"recover / bare: median {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), target {options.target}")
    return 0 if median >= options.target else 1


if __name__ == "__main__":
    sys.exit(main())
