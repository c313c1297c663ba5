"""What the toolkit adds to a training step, and what it takes off: `recover` beside a bare TRL script with the same settings.

    python benchmarks/training.py --hidden 512 --steps 30 --repeats 5
    python benchmarks/training.py --methods full,lora --ways recover,packing,teacher,router --lengths gsm8k

All train the same generated checkpoint on the same examples, in turns, in one process; only steps are timed. `recover` is
compared with the script, every other way with `recover`. Exit status 1 where the median of `recover` is below the target. Beside
the clock's stand CPU-seconds, for machines on which others work.
"""

import argparse
import contextlib
import io
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from datasets import Dataset
from peft import LoraConfig
from playground_shaped import make
from transformers import AutoModelForCausalLM, Trainer, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer

from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.recovery.packing import padding_shares
from toolkit.recovery.recover import recover
from toolkit.recovery.settings import sft_config
from toolkit.recovery.teacher import cache_logits
from toolkit.runtime.distributed import start, stop
from toolkit.runtime.zero import start_deepspeed
from toolkit.tasks import Task, encode_all

TARGET = 1.0
WAYS: dict[str, dict[str, object]] = {  # what each adds to the recipe's `finetuning`
    "recover": {},
    "packing": {"packing": True},
    "teacher": {"teacher": "original"},
    "router": {"router_gradient": "all"},
}
GSM8K = {"question": (60, 0.4), "answer": (120, 0.45)}  # tokens: median, and deviation of the logarithm
SAME_LOSS = {"full": 1e-4, "lora": 2e-2}  # adapters begin with other random numbers


class Steps(NamedTuple):
    """Per step."""

    seconds: float
    cpu_seconds: float
    loss: float


def recipe_for(options: argparse.Namespace, task: object, method: str, way: str) -> Recipe:
    trainer = {
        "max_steps": options.steps, "per_device_train_batch_size": options.batch, "logging_steps": 10, "eval_strategy": "no",
        "save_strategy": "no", "gradient_checkpointing": options.checkpointing,
    }  # fmt: skip
    finetuning = {"method": method, "zero": options.zero, "examples": options.batch * options.steps, "trainer": trainer}
    values = {"name": "run", "model": "m", "task": task, "finetuning": finetuning | WAYS.get(way, {})}
    return Recipe.model_validate(values)


def task_of(lengths: str, folder: Path, examples: int) -> object:
    """The playground's, or made-up text as long as the examples of GSM8K are."""
    if lengths == "playground":
        return "playground/arithmetic"
    draw, file = random.Random(0), folder / "train.jsonl"
    rows = [
        {
            key: "".join(str(draw.randrange(10)) for _ in range(round(draw.lognormvariate(math.log(median), deviation))))
            for key, (median, deviation) in GSM8K.items()
        }
        for _ in range(examples + 40)  # some become the dev slice
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "train": str(file),
        "test": str(file),
        "prompt": "{question}",
        "completion": "{answer}",
        "scorer": "exact",
        "dev_examples": 8,
    }


@contextlib.contextmanager
def timing(steps: int) -> Iterator[list[float]]:
    """Inside the context what training takes per step is noted: seconds, CPU-seconds."""
    epoch, noted = Trainer._run_epoch, [0.0, 0.0]

    def timed(*args: Any, **kwargs: Any) -> None:
        before = time.perf_counter(), time.process_time()
        epoch(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        noted[0] += (time.perf_counter() - before[0]) / steps
        noted[1] += (time.process_time() - before[1]) / steps

    with mock.patch.object(Trainer, "_run_epoch", timed):
        yield noted


def bare(recipe: Recipe, run: RunDirectory) -> float:
    """A script as one would write it; returns the loss."""
    set_seed(recipe.seed)
    settings = recipe.finetuning
    arguments = sft_config(recipe, run.checkpoints)
    tokenizer = load_tokenizer(str(run.pruned))
    examples = random.Random(recipe.seed).sample(Task(recipe.task).examples("train"), settings.examples or 0)
    encoded, _ = encode_all(tokenizer, examples, settings.max_length)
    rows = [
        {"input_ids": e.input_ids, "labels": [t if c else -100 for t, c in zip(e.input_ids, e.completion_mask, strict=True)]}
        for e in encoded
    ]
    adapters = LoraConfig(
        r=settings.lora.rank, lora_alpha=int(settings.lora.alpha), lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(run.pruned, dtype=torch.bfloat16 if arguments.bf16 else torch.float32)
    try:
        trainer = SFTTrainer(
            model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            peft_config=adapters if settings.method == "lora" else None,
        )  # fmt: skip
        return float(trainer.train().metrics["train_loss"])
    finally:
        unset_hf_deepspeed_config()


def own(recipe: Recipe, run: RunDirectory) -> float:
    recover(recipe, str(run.path.parent))
    return float(json.loads(run.training_log.read_text().splitlines()[-1])["train_loss"])


def train(recipe: Recipe, run: RunDirectory, way: str) -> Steps:
    with contextlib.redirect_stdout(io.StringIO()), timing(recipe.finetuning.trainer["max_steps"]) as noted:
        loss = (bare if way == "bare" else own)(recipe, run)
    return Steps(noted[0], noted[1], loss)


def ask_teacher(recipe: Recipe, run: RunDirectory) -> None:
    """Caches the logits of the checkpoint itself: what a cache is made of does not change what reading it costs."""
    examples = random.Random(recipe.seed).sample(Task(recipe.task).examples("train"), recipe.finetuning.examples or 0)
    tokenizer = load_tokenizer(str(run.pruned))
    encoded, _ = encode_all(tokenizer, examples, recipe.finetuning.max_length)
    temperature = recipe.finetuning.distillation.temperature
    with contextlib.redirect_stdout(io.StringIO()):
        cache_logits(
            load_model(str(run.pruned)), encoded, run.teacher, temperature, 8, int(tokenizer.pad_token_id or 0), "benchmark"
        )


def padding(recipe: Recipe, run: RunDirectory) -> str:
    """Of batches in the order of the file, padded and packed."""
    encoded, _ = encode_all(load_tokenizer(str(run.pruned)), Task(recipe.task).examples("train"), recipe.finetuning.max_length)
    lengths, batch = [len(e.input_ids) for e in encoded], int(recipe.finetuning.trainer["per_device_train_batch_size"])
    shares = padding_shares(lengths, batch)
    return (
        f"{statistics.mean(lengths):.0f} tokens an example, at most {max(lengths)}; padding in batches of {batch}: "
        f"{shares.padded:.0%} of all positions, {shares.packed:.0%} when packed"
    )


def compare(options: argparse.Namespace, folder: Path, method: str) -> float:
    """Prints a line per repeat and the ratios of every way; returns the median of `recover` against the script."""
    run, task = RunDirectory("run", folder), task_of(options.lengths, folder, options.batch * options.steps)
    ways = [way for way in ("bare", *options.ways) if not (method == "lora" and way == "router")]
    recipes = {way: recipe_for(options, task, method, way) for way in ways}
    print(f"{method}: {padding(recipes['bare'], run)}", flush=True)
    if "teacher" in ways:
        ask_teacher(recipes["teacher"], run)
    found: dict[str, list[Steps]] = {way: [] for way in ways}
    for number in range(options.repeats):
        for way in ways[:: 1 if number % 2 else -1]:
            found[way].append(train(recipes[way], run, way))
        for way in ("recover", "packing"):
            loss, expected = found.get(way, found["bare"])[-1].loss, found["bare"][-1].loss
            if not math.isclose(loss, expected, rel_tol=SAME_LOSS[method]):
                raise SystemExit(f"not the same training: loss {loss} with {way}, {expected} with the script")
        seconds = ", ".join(f"{way} {steps[-1].seconds:.3f} ({steps[-1].cpu_seconds:.3f})" for way, steps in found.items())
        print(f"{method}, repeat {number + 1}: s/step (CPU) {seconds}", flush=True)
    verdict = math.inf
    for way in ways[1:]:
        other = "bare" if way == "recover" else "recover"
        pairs = [*zip(found[other], found[way], strict=True)]
        clock, cpu = ([getattr(o, key) / getattr(w, key) for o, w in pairs] for key in ("seconds", "cpu_seconds"))
        print(f"{method}: steps/s of {way} / {other}: median {spread(clock)}; by CPU-seconds {spread(cpu)}", flush=True)
        verdict = statistics.median(clock) if way == "recover" else verdict
    return verdict


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def training_parser(description: str | None, steps: int, methods: Sequence[str]) -> argparse.ArgumentParser:
    """Of the model, the examples and the ways to train, with these steps and methods unless others are given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, as on GPUs by default")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(methods))
    parser.add_argument("--ways", type=lambda text: text.split(","), default=["recover"], help=", ".join(WAYS))
    parser.add_argument("--lengths", choices=("playground", "gsm8k"), default="playground", help="of the examples")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = training_parser(__doc__, steps=30, methods=["full"])  # or lora
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--target", type=float, default=TARGET, help="the least median ratio of recover that passes")
    options = parser.parse_args(arguments)
    start()
    try:
        start_deepspeed()
        with tempfile.TemporaryDirectory() as temporary:
            make(RunDirectory("run", temporary).pruned, options.layers, options.hidden, options.experts)
            worst = min(compare(options, Path(temporary), method) for method in options.methods)
    finally:
        stop()
    print(f"recover / bare: median {worst:.3f}, target {options.target}")
    return 0 if worst >= options.target else 1


if __name__ == "__main__":
    sys.exit(main())
