"""`pollard export RUN --to FORMAT`: the run's model for llama.cpp or vLLM."""

import argparse
from typing import TYPE_CHECKING

from rich.markup import escape

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import join, say
from toolkit.runtime.errors import PollardError

if TYPE_CHECKING:
    from toolkit.report.export_facts import ExportFacts

FORMATS = ("gguf", "fp8", "w4a16")
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, or its name in runs/")
    parser.add_argument(
        "--to", required=True, choices=FORMATS,
        help="gguf: for llama.cpp; fp8 (8-bit weights and activations), w4a16 (4-bit weights): by llm-compressor, for vLLM",
    )  # fmt: skip
    parser.add_argument(
        "--type", choices=TYPES, help="with --to gguf: the numbers of its weights (default: auto, 16 bit as near as can be)"
    )
    parser.add_argument("--model", metavar="ROLE", help="pruned, refitted, recovered, … (default: recovered)")
    parser.add_argument("--python", metavar="PATH", help="the Python of an environment of yours that has the reader's packages")
    parser.add_argument(
        "--install", action="store_true", help="make the reader's environment where there is none (1.3 GB or more)"
    )
    parser.add_argument("--no-evaluate", action="store_true", help="write it, and do not ask it the task's questions")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")


def run_export(arguments: argparse.Namespace) -> "ExportFacts":
    if arguments.type and arguments.to != "gguf":
        raise PollardError(
            f"--type is an option of --to gguf, and this is --to {arguments.to}: leave one of the two out.", code="export.type"
        )
    join()
    from toolkit.pipeline.export import export, format_of

    facts = export(
        arguments.run,
        format_of(arguments.to, arguments.type or "auto"),
        arguments.model,
        arguments.python,
        arguments.install,
        not arguments.no_evaluate,
        arguments.overwrite,
    )
    for sentence in facts.sentences():
        say(escape(sentence))
    return facts


EXPORT = Verb(
    "export",
    "the run's model for llama.cpp (GGUF) or vLLM (FP8, W4A16), by their own tools, and its score there",
    "pollard export runs/playground --to gguf --install",
    run_export,
    add_export_arguments,
)
