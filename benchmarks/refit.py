"""Time and memory of refit beside those of fine-tuning to the same accuracy, in one run on the playground:

    python benchmarks/refit.py                                     # minutes on two idle cores
    python benchmarks/refit.py task=playground/sorting pruning.keep=2

Prunes once; refits, and asks the result on the dev slice; then fine-tunes the pruned model without refit, with twice as many
steps each time, until it answers as much. Every step goes through the real pipeline, alone on the machine. Seconds are the
stages' own. Memory is the most that all of a launch's processes held (unique set size), sampled, the imports included.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import psutil
from memory import peak_during
from study import launch

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.runtime.formatting import percent

RECIPE, NAME = "recipes/study/refit.yaml", "refit-benchmark"
STEPS = (10, 20, 40, 80, 160, 320)
SAMPLES_PER_SECOND = 10


class Measured(NamedTuple):
    seconds: float  # of the stage
    peak: int  # bytes, of the launch
    score: float
    n: int


def measure(verb: str, stage: str, role: str, arguments: list[str]) -> Measured:
    """Launches a verb whose last stage is new, then asks the model that it leaves."""

    def work() -> None:
        if not launch(1, ["--module", "toolkit.cli", verb, RECIPE], arguments):
            raise SystemExit(f"{verb} failed")

    peak = peak_during(work, held_by_children, SAMPLES_PER_SECOND)
    if not launch(1, ["--module", "toolkit.cli", "evaluate", RECIPE], arguments):
        raise SystemExit("evaluate failed")
    run = RunDirectory(NAME)
    scored = json.loads((run.evaluation / f"{role}.json").read_text())
    return Measured(float(run.entries()[stage]["seconds"]), peak, scored["score"], scored["n"])


def held_by_children() -> int:
    """Bytes that this process's descendants hold for themselves alone."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return total


def show(what: str, found: Measured) -> None:
    print(
        f"{what:<24} {found.seconds:8.1f} s   {found.peak / 1e9:6.2f} GB   {percent(found.score)} of {found.n} on the dev slice",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    overrides = [f"name={NAME}", "evaluation.split=dev", "evaluation.examples=500", *parser.parse_args().overrides]
    if Path("runs", NAME).exists():
        raise SystemExit(f"runs/{NAME} is there already: remove it first, or finished stages are not measured.")
    if not launch(1, ["--module", "toolkit.cli", "prune", RECIPE], [*overrides, "evaluation.models=[pruned]"]):
        raise SystemExit("prune failed")
    refit = measure("refit", "refit", "refitted", [*overrides, "pruning.refit=true", "evaluation.models=[refitted]"])
    show("refit", refit)
    for steps in STEPS:
        trained = [f"finetuning.trainer.max_steps={steps}", "evaluation.models=[recovered]"]
        found = measure("recover", "recover", "recovered", [*overrides, *trained])
        show(f"{steps} steps of fine-tuning", found)
        if found.score >= refit.score:
            break


if __name__ == "__main__":
    main()
