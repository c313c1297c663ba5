"""What the studies share: arguments, starting a cell under the launcher, the paired comparison, and tables in a document."""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import MISSING
from toolkit.runtime.intervals import pair


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
    """One cell under the launcher, which skips by itself what is done; whether it ended well. What it prints goes to `log`,
    or on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    import torch

    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    command = [str(folder / "deepspeed"), "--quiet", "--num_gpus", str(ranks), "--master_port", str(port), *what, *arguments]
    print(f"# {' '.join(arguments)}", flush=True)
    if log is None:
        return subprocess.run(command, env=environment, check=False).returncode == 0
    with log.open("a") as told:
        return subprocess.run(command, env=environment, check=False, stdout=told, stderr=told).returncode == 0


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
