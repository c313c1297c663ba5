"""What the studies share: arguments, cells under the launcher and what they measured, the paired comparison, and tables in a
document."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import preloaded

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.runtime.formatting import MISSING
from toolkit.runtime.intervals import pair

Cell = TypeVar("Cell")


class Answers(TypedDict):
    """Of one model. `right`: a text with a 1 for every question answered rightly, in their order."""

    score: float
    n: int
    interval: list[float]
    right: str


def study_parser(description: str | None, name: str, document: str) -> argparse.ArgumentParser:
    """Of every study's arguments: overrides of its recipe, the runs' name, the page, seeds, and whether to write tables only."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--name", default=name, help="what the runs' names begin with")
    parser.add_argument("--document", type=Path, default=Path(document))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="run nothing")
    return parser


def conclude(document: Path, missing: Sequence[str], total: str, failed: Sequence[str]) -> int:
    """Says what is missing of `total` ("90 cells"), and what failed; returns the exit status."""
    print(f"\n{document}: {len(missing)} of {total} are missing", *missing, sep="\n  ")
    if failed:
        print("failed:", *failed, sep="\n  ")
    return bool(failed)


def answers_of(run: RunDirectory, role: str) -> Answers:
    """What an evaluation of a run has left."""
    scored = json.loads((run.evaluation / f"{role}.json").read_text())
    lines = (run.evaluation / f"{role}.predictions.jsonl").read_text().splitlines()
    right = "".join(str(int(json.loads(line)["correct"])) for line in lines)
    return {"score": scored["score"], "n": scored["n"], "interval": scored["interval"], "right": right}


def launch(ranks: int, what: Sequence[str], arguments: Sequence[str], log: Path | None = None) -> bool:
    """One cell under the launcher, or without one where it has a single rank and no GPU, which skips by itself what is done;
    whether it ended well. What it prints goes to `log`, or on."""
    import torch

    folder, gpus = Path(sys.executable).parent, torch.cuda.is_available()
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    print(f"# {' '.join(arguments)}", flush=True)
    if ranks == 1 and not gpus:
        return preloaded.run([*what, *arguments], environment, log)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [str(folder / "deepspeed"), "--quiet", "--num_gpus", str(ranks), "--master_port", str(port), *what, *arguments]
    if log is None:
        return subprocess.run(command, env=environment, check=False).returncode == 0
    with log.open("a") as output:
        return subprocess.run(command, env=environment, check=False, stdout=output, stderr=output).returncode == 0


class PipelineCell(ABC):
    """One launch; what it measured lies in runs/<study>/<name>.json, with a fingerprint of its recipe."""

    recipe: str
    what: tuple[str, ...]
    """What is launched, before the recipe."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def run(self, study: str) -> str:
        """The name of its run directory."""

    @abstractmethod
    def overrides(self) -> list[str]:
        """Of the recipe, the run's name apart."""

    def arguments(self, study: str, overrides: Sequence[str]) -> list[str]:
        """All that is said to the recipe."""
        return [f"name={self.run(study)}", *self.overrides(), *overrides]

    @abstractmethod
    def measured(self, run: RunDirectory) -> Mapping[str, Any]:
        """What the run directory says of the cell, which has just ended."""

    def path(self, study: str) -> Path:
        return Path("runs", study, f"{self.name}.json")

    def stored(self, study: str) -> Any:
        """None until it is finished."""
        path = self.path(study)
        return json.loads(path.read_text()) if path.exists() else None

    def do(self, study: str, overrides: Sequence[str]) -> str | None:
        """Unless it is done already under exactly this recipe; where it fails, its name with its log, or with what is wrong
        with its recipe."""
        arguments = self.arguments(study, overrides)
        known, log = self.stored(study), self.path(study).with_suffix(".log")
        try:
            asked = self.asked(arguments)
        except PollardError as error:
            return f"{self.name}: {error}"
        if known and known["asked"] == asked:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        if not launch(1, [*self.what, self.recipe], arguments, log):
            return f"{self.name} ({log})"
        write_text(self.path(study), json.dumps({"asked": asked, **self.measured(RunDirectory(self.run(study)))}) + "\n")
        return None

    def asked(self, arguments: Sequence[str]) -> str:
        """A fingerprint of what decides the result. Raises PollardError for a recipe that the toolkit does not understand."""
        return fingerprint_of(dump_recipe(load_recipe(self.recipe, arguments)))


class StudyResults:
    """What the finished cells of `study` measured, a line for each in a file of the repository: a checkout goes on from there."""

    def __init__(self, file: Path, study: str) -> None:
        self.file, self.folder = file, Path("runs", study)
        self._writing = threading.Lock()

    def restore(self) -> None:
        """Puts them to where cells look for theirs. A cell whose recipe is another one by now is done again."""
        for name, result in (json.loads(self.file.read_text()) if self.file.exists() else {}).items():
            path = self.folder / f"{name}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(result) + "\n")

    def collect(self) -> None:
        with self._writing:
            found = {path.stem: path.read_text().strip() for path in sorted(self.folder.glob("*.json"))}
            lines = ",\n".join(f"{json.dumps(name)}: {result}" for name, result in found.items())
            write_text(self.file, f"{{\n{lines}\n}}\n")


def do_groups(
    groups: Iterable[Sequence[Cell]], at_once: int, do: Callable[[Cell], str | None], after: Callable[[], None] = lambda: None
) -> list[str]:
    """`do` for every cell, groups at the same time and the cells of one in their order; what failed, in the order of groups.
    `after` is called after every cell. Interrupted (Ctrl-C, SIGTERM), it waits for the cells at work and starts no other."""
    stopping = threading.Event()

    def do_group(group: Sequence[Cell]) -> list[str]:
        failed = []
        for cell in group:
            if not stopping.is_set():
                failed.append(do(cell))
                after()
        return [failure for failure in failed if failure]

    def end(*_: Any) -> None:
        stopping.set()
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    pool = ThreadPoolExecutor(at_once)
    try:
        futures, failed = [pool.submit(do_group, group) for group in groups], False
        while not failed and wait(futures, timeout=1, return_when=FIRST_EXCEPTION).not_done:
            # Looks up every second: a signal that falls just before the wait would be heard only when a group is done
            failed = any(future.done() and future.exception() for future in futures)
        return [failure for future in futures for failure in future.result()]
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def run_cells(groups: Sequence[Sequence[PipelineCell]], given: argparse.Namespace, results: StudyResults) -> list[str]:
    """Those that are not finished, unless the arguments only ask for tables; what failed. The study's own are kept in the
    repository, those of trials are not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    own = given.name == results.folder.name
    collect = results.collect if own else lambda: None
    if own:
        results.restore()
    try:
        if given.tables:
            return []
        return do_groups(groups, given.at_once, lambda cell: cell.do(given.name, given.overrides), collect)
    finally:
        collect()


def put_between(document: Path, begin: str, end: str, parts: Iterable[str]) -> None:
    """Replaces what stands between two marks in `document`; without them they are put at its end."""
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, _, rest = text.partition(begin)
    write_text(document, f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{rest.partition(end)[2]}")


def paired_points(pairs: Sequence[tuple[str, str]]) -> str:
    """The difference of two models in points, with its interval and McNemar's p, over all `pairs` of texts that have a 1 for
    every question answered rightly: same questions, same order. A dash without any."""
    answers = [both for one, other in pairs for both in zip(one, other, strict=True)]
    if not answers:
        return MISSING
    found = pair(*(answers.count(outcome) for outcome in (("1", "1"), ("1", "0"), ("0", "1"), ("0", "0"))))
    value, low, high = (100 * share for share in (found.difference, *found.interval))
    p = found.p
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f}), p {f'= {p:.2g}' if p >= 1e-6 else '< 1e-6'}"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))
