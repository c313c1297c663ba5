"""Kill the command at random times and start it again, until it is done; then compare with an undisturbed run:

    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 20

A generated checkpoint, the command line itself, SIGKILL to its process group. Each run is killed again and again, at times
between its first line and the undisturbed run's last, until it ends before its time comes; then the next run begins.
Statistics, plan, the pruned files and, with `--verb recover`, the recovered ones and the training log must be those of the
undisturbed run. Exit status 1 where they are not.

Every attempt is forked from this process, which has imported all libraries: kills fall on work, not on imports.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from playground_shaped import ROOT, make

import toolkit.pipeline
import toolkit.recovery.recover  # noqa: F401  what takes seconds is imported here once for all attempts
from toolkit import cli
from toolkit.moe import rewrite
from toolkit.recovery.checkpoints import COMPLETE, newest_first

COMPARED = (
    "calibration/statistics.safetensors", "plan.json", "pruned/*.safetensors", "pruned/*.json", "recovered/*.safetensors",
    "recovered/*.json",
)  # fmt: skip
CLOCK = ("per_second", "runtime", "train_loss")  # what a training log tells of the time, or of one process alone


class Command:
    """One verb of the command line on the generated checkpoint, in `folder`, writing files of at most `file_bytes`."""

    def __init__(self, folder: Path, verb: str, overrides: list[str], file_bytes: int) -> None:
        self.folder, self.verb, self.overrides, self.file_bytes = folder, verb, overrides, file_bytes

    def run(self, name: str, kill_after: float | None = None) -> float | None:
        """Runs it under that name; seconds between its first and its last line, or None where it was killed.

        Raises RuntimeError with what it printed where it fails.
        """
        reader, writer = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=self._main, args=(name, writer))
        process.start()
        os.close(writer)
        times, printed, timer = [], [], None
        with os.fdopen(reader) as lines:
            for line in lines:
                if not times and kill_after is not None:
                    timer = threading.Timer(kill_after, os.killpg, (process.pid, signal.SIGKILL))
                    timer.start()
                times.append(time.monotonic())
                printed.append(line)
        process.join()
        if timer:
            timer.cancel()
        if process.exitcode == -signal.SIGKILL:
            return None
        if process.exitcode:
            raise RuntimeError("".join(printed) + (self.folder / "errors").read_text())
        return times[-1] - times[0]

    def _main(self, name: str, writer: int) -> None:
        os.setsid()  # a group of its own, with all that it may start
        os.chdir(self.folder)
        sys.stdout, sys.stderr = os.fdopen(writer, "w"), open("errors", "w")  # noqa: SIM115
        rewrite.SHARD_BYTES = self.file_bytes
        recipe, model = str(ROOT / "recipes" / "playground.yaml"), str(self.folder / "original")
        sys.argv = ["pollard", self.verb, recipe, f"name={name}", f"model={model}", "pruning.keep=4", *self.overrides]
        sys.exit(cli.main())

    def results(self, name: str) -> dict[str, bytes]:
        run = self.folder / "runs" / name
        found = {str(path.relative_to(run)): path.read_bytes() for part in COMPARED for path in sorted(run.glob(part))}
        for log in run.glob("training_log.jsonl"):
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            kept = [{key: line[key] for key in sorted(line) if not any(part in key for part in CLOCK)} for line in lines]
            found[log.name] = json.dumps(kept).encode()
        return found

    def stands(self, name: str) -> str:
        """How far a killed run has come."""
        run = self.folder / "runs" / name
        if (run / "recovered").exists() or (run / "recovered.tmp").exists():
            return "recovered" if (run / "recovered").exists() else "trained, saving the result"
        for checkpoint in newest_first(run / "checkpoints" / "recovered"):
            return f"training, {checkpoint.name}{'' if (checkpoint / COMPLETE).exists() else ' half written'}"
        if (run / "pruned").exists():
            return "pruned"
        if (run / "pruned.tmp").exists():
            return f"pruning, {len([*(run / 'pruned.tmp').glob('*.safetensors')])} files whole"
        return "selected" if (run / "plan.json").exists() else "calibrating"


def kill_and_compare(command: Command, kills: int, seed: int) -> list[str]:
    """The names of the runs that came out otherwise than the undisturbed one, after that many kills."""
    seconds = command.run("undisturbed")
    assert seconds is not None
    expected, dice = command.results("undisturbed"), random.Random(seed)
    print(f"undisturbed: {seconds:.1f} s, {len(expected)} files to compare", flush=True)
    wrong, done, runs = [], 0, 0
    while done < kills:
        name = f"killed{runs}"
        runs += 1
        while True:
            after = dice.uniform(0, seconds) if done < kills else None
            if command.run(name, after) is not None:
                break
            done += 1
            print(f"{name}: kill {done} after {after:.2f} s, {command.stands(name)}", flush=True)
        same = command.results(name) == expected
        print(f"{name}: done, {'the same' if same else 'NOT THE SAME'}", flush=True)
        wrong += [] if same else [name]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--verb", default="prune", help="the last stage to run")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--file-mb", type=float, default=20, help="size of the pruned checkpoint's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of recipes/playground.yaml")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder / "original", options.layers, options.hidden)
        command = Command(folder, options.verb, options.overrides, int(options.file_mb * 1e6))
        wrong = kill_and_compare(command, options.kills, options.seed)
    print(f"{options.kills} kills: {'all runs came out the same' if not wrong else f'{wrong} came out otherwise'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
