"""Everything that a GPU has to show, in one command of at most eight minutes, the largest questions first:

    benchmarks/gpu.sh                                # or: python benchmarks/gpu.py --minutes 8 --results gpu-results.md
    python benchmarks/gpu.py --trial                 # with tiny sizes: on any machine, in a few minutes

Each part is a benchmark of its own, or a run of the embedded model in bfloat16, in a process of
its own. What it prints comes out at once, and is in the results' file as well: it stays, whatever happens to the machine. A part
is stopped at its limit; those that the time no longer suffices for are named. Exit status 1 where a part has failed, or missed
its target.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

ROOT = Path(__file__).parents[1]
METHODS = ("full", "lora", "qlora", "experts", "router")
LEAST = 20  # seconds in which a part can show anything
SHALLOW, TINY = "mixtral-8-layers", "mixtral-tiny"  # folders with a configuration alone
SHAPES = {
    SHALLOW: {"num_hidden_layers": 8},  # of 32: with its pruned forms beside it, it fits into 80 GB
    TINY: {
        "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 100,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One question. `command` and `trial` are what Python is started with: at a real model's size, and with tiny ones."""

    question: str
    command: Sequence[str]
    trial: Sequence[str]
    limit: int  # seconds


def benchmark_part(question: str, script: str, command: str, trial: str, limit: int) -> Part:
    file = str(ROOT / "benchmarks" / script)
    return Part(question, [file, *command.split()], [file, *trial.split()], limit)


def method_part(method: str) -> Part:
    """The embedded model, from its first answer to the report."""
    recipe = [
        str(ROOT / "toolkit" / "train.py"), str(ROOT / "recipes" / "playground.yaml"), f"name=gpu-{method}",
        f"model={ROOT / 'data' / 'playground' / 'model'}", f"finetuning.method={method}",
    ]  # fmt: skip
    tiny = [
        "calibration.examples=8", "evaluation.examples=4", "evaluation.max_new_tokens=8", "evaluation.off_task=false",
        "finetuning.examples=16", "finetuning.trainer.max_steps=2", "finetuning.trainer.eval_strategy=no",
    ]  # fmt: skip
    real = [
        "model.dtype=bfloat16", "evaluation.examples=300", "finetuning.trainer.max_steps=120", "finetuning.trainer.bf16=true",
    ]  # fmt: skip
    return Part(f"the embedded model by `{method}`, from start to report", [*recipe, *real], [*recipe, *tiny], 60)


LARGE, SMALL = "--hidden 4096 --width 14336 --layers 4", "--hidden 64 --width 32 --layers 1"  # Mixtral-8x7B's layers
PARTS = (
    benchmark_part(
        "calibration, the exact search and pruning of Mixtral-8x7B", "mixtral_shape.py", "",
        "--layers 2 --hidden 64 --width 32 --sequences 4 --length 16 --batch-size 2", 120,
    ),
    benchmark_part(
        "skipping a quarter of the experts' work", "skipping.py", f"{LARGE} --prompts 8 32 --repeats 5",
        f"{SMALL} --prompts 2 --batches 1 --length 8 --steps 2 --repeats 1", 60,
    ),
    benchmark_part(
        "training: recover beside a bare script, and what learning more costs", "training.py",
        "--hidden 1024 --checkpointing --steps 10 --methods full,lora --ways recover,router,teacher,packing",
        "--hidden 64 --steps 2 --batch 2 --repeats 1 --layers 1 --methods full --ways recover", 90,
    ),
    benchmark_part(
        "answering behind shots that are computed once", "generation.py", "--part shots --hidden 1024",
        "--part shots --hidden 128 --per-task 4 --new 8 --repeats 1", 60,
    ),
    Part(
        "how fast the smaller model is",
        ["-m", "toolkit.cli", "benchmark", SHALLOW, "--keep", "4,2"],
        [
            "-m", "toolkit.cli", "benchmark", TINY, "--keep", "2", "--batch-sizes", "1", "--prompt-tokens", "8",
            "--new-tokens", "4", "--repeats", "1",
        ], 60,
    ),
    *map(method_part, METHODS),
    benchmark_part("drafting", "drafts.py", LARGE, f"{SMALL} --repeats 1", 45),
    benchmark_part(
        "where a training step's time goes", "training_profile.py", "--hidden 1024 --checkpointing",
        "--hidden 64 --layers 1 --steps 1 --batch 2 --methods full", 60,
    ),
)  # fmt: skip


def stop(process: subprocess.Popen[str]) -> None:
    """With all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(part: Part, command: Sequence[str], seconds: float, results: IO[str], folder: str) -> str:
    """How it ended, in words; what it prints goes to both, line by line."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    previous = signal.signal(signal.SIGALRM, lambda *_: stop(process))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            results.write(line)
            results.flush()
        status = process.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        stop(process)
    took = time.monotonic() - started
    if status == -signal.SIGKILL and took >= seconds:
        return f"stopped after {seconds:.0f} s, its limit"
    return f"{took:.0f} s" if status == 0 else f"failed after {took:.0f} s (exit status {status})"


def write_shapes(folder: Path) -> None:
    """Mixtral-8x7B's configuration, made smaller."""
    published = json.loads((ROOT / "benchmarks" / "scaling" / "mixtral-8x7b" / "config.json").read_text())
    for name, changes in SHAPES.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(published | changes))


def machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {os.cpu_count()} cores of {platform.machine()}"
    return f"{time.strftime('%Y-%m-%d')}, {gpu}, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="in all")
    parser.add_argument("--results", type=Path, default=Path("gpu-results.md"))
    parser.add_argument("--trial", action="store_true", help="tiny sizes")
    parser.add_argument("parts", nargs="*", metavar="PART", help="by number, the first is 1 (default: all)")
    given = parser.parse_args()
    wanted = [int(number) for number in given.parts] or range(1, len(PARTS) + 1)
    end, failed = time.monotonic() + 60 * given.minutes, False
    summary = []
    with given.results.open("w", encoding="utf-8") as results, tempfile.TemporaryDirectory() as folder:

        def say(text: str) -> None:
            print(text, flush=True)
            results.write(text + "\n")
            results.flush()

        write_shapes(Path(folder))
        say(f"{machine()}{', tiny sizes: a trial' if given.trial else ''}")
        for number in wanted:
            part, left = PARTS[number - 1], end - time.monotonic()
            say(f"\n## {number}. {part.question}\n")
            if left < LEAST:
                ended = "not begun: the time is over"
            else:
                say("```text")
                ended = run_part(part, part.trial if given.trial else part.command, min(left, part.limit), results, folder)
                say("```")
            failed |= ended.startswith("failed")
            summary.append(f"| {number} | {part.question} | {ended} |")
            say(f"\n{ended}")
        say("\n| | part | |\n|---|---|---|\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
