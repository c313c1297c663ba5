"""Kill the command at random times and start it again, until it is done; then compare with an undisturbed run:

    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 20
    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 20 --taught --parts answers,teacher,recover,saving

A checkpoint, the command line itself, SIGKILL to its process group. Kills fall on the parts of a run in turn (its stages,
and the saving of what was trained), each at a random moment of its part; a part that is done already takes the next run.
Statistics, plan, the pruned files and, as far as the run goes, the original's own answers, the teacher's cache, the recovered
files, the training log and the predictions must be those of the undisturbed run. Exit status 1 where they are not.

Every attempt is forked from this process, which has imported all libraries: kills fall on work, not on imports.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from playground_shaped import ROOT, make

import toolkit.cuts.writer
import toolkit.pipeline.runner
import toolkit.recovery.recover
from toolkit.cli import main as cli
from toolkit.pipeline import drawing
from toolkit.recovery import teacher

COMPARED = (
    "calibration/statistics.safetensors", "plan.json", "pruned/*.safetensors", "pruned/*.json", "answers/*/*", "teacher/*",
    "recovered/*.safetensors", "recovered/*.json", "evaluation/*.predictions.jsonl",
)  # fmt: skip
PIECE = 8  # examples in a file of the teacher's cache, prompts in one of the answers: several of each in a small run
# The embedded model, which gives right answers, writes half of the training data and teaches
TAUGHT = [
    f"model={ROOT / 'data' / 'playground' / 'model'}", "finetuning.teacher=original",
    "finetuning.data=[{task: playground/arithmetic, examples: 32}, {self_generated: true, samples: 2, examples: 32}]",
]  # fmt: skip
CLOCK = ("per_second", "runtime", "train_loss")  # what a training log tells of the time, or of one process alone


class Command:
    """One verb of the command line on the generated checkpoint, in `folder`, writing files of at most `file_bytes`."""

    def __init__(self, folder: Path, verb: str, overrides: list[str], file_bytes: int) -> None:
        self.folder, self.verb, self.overrides, self.file_bytes = folder, verb, overrides, file_bytes

    def run(self, name: str, kill: tuple[str, float] | None = None) -> dict[str, float] | None:
        """Runs it under that name, killed so many seconds after a part of it has begun; the seconds that each part took, or
        None where it was killed.

        Raises RuntimeError with what it printed where it fails.
        """
        reader, writer = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=self._main, args=(name, writer))
        process.start()
        os.close(writer)
        begun, printed, timer = {}, [], None
        with os.fdopen(reader) as lines:
            for line in lines:
                part = part_that_begins(line)
                if kill and part == kill[0] and not timer:
                    timer = threading.Timer(kill[1], os.killpg, (process.pid, signal.SIGKILL))
                    timer.start()
                if part:
                    begun.setdefault(part, time.monotonic())
                printed.append(line)
        process.join()
        if timer:
            timer.cancel()
        if process.exitcode == -signal.SIGKILL:
            return None
        if process.exitcode:
            raise RuntimeError("".join(printed) + (self.folder / "errors").read_text())
        ends = [*list(begun.values()), time.monotonic()][1:]  # none where a kill came when all was done
        return {part: end - start for (part, start), end in zip(begun.items(), ends, strict=True)}

    def _main(self, name: str, writer: int) -> None:
        os.setsid()  # a group of its own, with all that it may start
        os.chdir(self.folder)
        sys.stdout, sys.stderr = os.fdopen(writer, "w"), open("errors", "w")  # noqa: SIM115
        toolkit.cuts.writer.SHARD_BYTES = self.file_bytes
        drawing.PROMPTS = teacher.EXAMPLES = PIECE
        recipe, model = str(ROOT / "recipes" / "playground.yaml"), str(self.folder / "original")
        sys.argv = ["pollard", self.verb, recipe, f"name={name}", f"model={model}", "pruning.keep=4", *self.overrides]
        sys.exit(cli.main())

    def results(self, name: str) -> dict[str, bytes]:
        run = self.folder / "runs" / name
        found = {str(path.relative_to(run)): path.read_bytes() for part in COMPARED for path in sorted(run.glob(part))}
        for path in (path for path in found if path.endswith("pollard.json")):  # it names what the folder was made from
            found[path] = found[path].replace(f"runs/{name}/".encode(), "runs/…/".encode())
        for log in run.glob("training_log.jsonl"):
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            kept = [{key: line[key] for key in sorted(line) if not any(part in key for part in CLOCK)} for line in lines]
            found[log.name] = json.dumps(kept).encode()
        return found


def part_that_begins(line: str) -> str | None:
    """A stage, by its first line; or, at the last step's, the saving of what was trained."""
    if re.search(r"step +(\d+)/\1 ", line):
        return "saving"
    return line.split()[0] if line.rstrip().endswith("(not done yet)") else None


def kill_and_compare(command: Command, kills: int, seed: int, parts: list[str] | None = None) -> list[str]:
    """The names of the runs that came out otherwise than the undisturbed one, after that many kills, which fall on `parts`
    (all of them unless given) in turn."""
    seconds = command.run("undisturbed")
    assert seconds is not None
    expected, dice = command.results("undisturbed"), random.Random(seed)
    times = ", ".join(f"{part} {length:.1f} s" for part, length in seconds.items())
    print(f"undisturbed: {times}; {len(expected)} files to compare", flush=True)
    aims, wrong, runs = list(islice(cycle(parts or seconds), kills)), [], 0
    while aims:
        name = f"killed{runs}"
        runs += 1
        while True:
            kill = (aims[0], dice.uniform(0, seconds[aims[0]])) if aims else None
            if command.run(name, kill) is not None:
                break
            assert kill
            print(f"{name}: kill {kills - len(aims) + 1} in {kill[0]}, {kill[1]:.2f} s after it began", flush=True)
            aims.pop(0)
        found = command.results(name)
        others = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
        print(f"{name}: done, {'NOT THE SAME: ' + ', '.join(others) if others else 'the same'}", flush=True)
        wrong += [name] if others else []
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--verb", default="prune", help="the last stage to run")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="where kills fall, e.g. teacher,recover,saving")
    parser.add_argument("--taught", action="store_true", help="the embedded model writes training data and teaches")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--file-mb", type=float, default=20, help="size of the pruned checkpoint's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of recipes/playground.yaml")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    wrong: list[str] | None = None
    try:
        make(folder / "original", options.layers, options.hidden)
        overrides = TAUGHT * options.taught + options.overrides
        command = Command(folder, options.verb, overrides, int(options.file_mb * 1e6))
        wrong = kill_and_compare(command, options.kills, options.seed, options.parts)
    finally:
        if wrong == []:
            shutil.rmtree(folder)
        else:
            print(f"All runs are left in {folder}")
    print(f"{options.kills} kills: {'all runs came out the same' if not wrong else f'{wrong} came out otherwise'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
