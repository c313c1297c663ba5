"""`pollard benchmark RUN|CHECKPOINT …`: speed, memory and size of models, each as a ratio to the first."""

import argparse
import json
from pathlib import Path
from typing import Any

from toolkit.cli.verbs.verb import Verb, check_figures_file
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

FIGURES = {"models", "batch_sizes"}  # keys of a file of them


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a run directory (all its models), a checkpoint's folder, a hub id, or a folder with config.json alone: a random "
        "model of that shape",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=_numbers, default=[1, 8, 32], help="default: 1,8,32")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of each prompt (default: 256)")
    parser.add_argument("--new-tokens", type=int, default=64, help="at least 2 (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement, in turn (default: 5)")
    for option, of in (("keep", "experts per block"), ("width", "channels per expert"), ("layers", "decoder layers")):
        example = {"keep": "4,2", "width": "7168", "layers": "16"}[option]
        parser.add_argument(f"--{option}", type=_numbers, default=[], help=f"of a random model, also so many {of}: {example}")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--save", metavar="FILE", help="also write the figures there (a run's own are kept in its speed.json)")


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on, with commas between them")
    return numbers


def run_benchmark(arguments: argparse.Namespace) -> Any:
    from toolkit.cli.benchmark_models import models_to_measure
    from toolkit.evaluation.speed import Workload, benchmark
    from toolkit.pipeline.run_facts import SPEED_FILE, model_fingerprints
    from toolkit.pipeline.run_models import find_run, is_run
    from toolkit.pipeline.write_report import write_report
    from toolkit.report.measurements import SpeedTable
    from toolkit.report.speed_table import show_speed
    from toolkit.runtime.files import write_text

    if arguments.new_tokens < 2 or min(arguments.prompt_tokens, arguments.repeats) < 1:
        raise PollardError(
            "--new-tokens must be at least 2 (the first is prefill), --prompt-tokens and --repeats at least 1.",
            code="cli.load-too-small",
        )
    if arguments.save:
        check_figures_file(Path(arguments.save), FIGURES, "a benchmark")
    fewer = {kind: getattr(arguments, kind) for kind in ("keep", "width", "layers")}
    load = Workload(arguments.batch_sizes, arguments.prompt_tokens, arguments.new_tokens, arguments.repeats)
    figures = benchmark(models_to_measure(arguments.models, fewer, arguments.dtype), load).to_json()
    if not arguments.json:
        show_speed(SpeedTable.model_validate(figures))
    if arguments.save:
        write_text(arguments.save, json.dumps(figures, indent=1) + "\n")
    if len(arguments.models) == 1 and is_run(arguments.models[0]):
        run = find_run(arguments.models[0]).directory
        of = model_fingerprints(run.done())
        write_text(run.path / SPEED_FILE, json.dumps(figures | {"of": of}, indent=1) + "\n")
        write_report(run.path)
        say(f"Report: {run.path / 'report.html'}")
    return figures


BENCHMARK = Verb(
    "benchmark",
    "speed, memory and size of models, measured in turn, as ratios to the first",
    "pollard benchmark runs/playground --batch-sizes 1,16 --save speed.json",
    run_benchmark,
    add_benchmark_arguments,
)
