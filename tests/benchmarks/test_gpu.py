"""One command shows everything that a GPU has to show: tried with tiny sizes, on any machine."""

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


def show(folder: Path, *arguments: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--trial", *arguments], cwd=folder, capture_output=True, text=True,
        timeout=500, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    kept = (folder / "gpu-results.md").read_text()
    assert all(line in kept for line in done.stdout.splitlines())
    return kept, done.returncode


def number_of(question: str) -> int:
    return next(number for number, part in enumerate(gpu.PARTS, 1) if question in part.question)


@pytest.mark.parametrize("question", ["skipping", "how fast", f"by `{gpu.METHODS[0]}`"])
def test_a_part_of_every_kind_runs_to_its_end(tmp_path: Path, question: str) -> None:
    """A benchmark, a verb, and a run of the embedded model. The other benchmarks have tests of their own."""
    number = number_of(question)
    kept, status = show(tmp_path, str(number))
    assert status == 0 and gpu.PARTS[number - 1].question in kept and len(kept.splitlines()) > 10
    assert re.search(rf"^\| {number} \| .* \| \d+ s \|$", kept, re.M), kept


class Understood(Exception):
    """The arguments are read; what they ask for is not done."""


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if "benchmarks" in part.command[0]], ids=lambda part: part.question)
def test_a_benchmark_understands_what_it_is_given(part: gpu.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def read_only(parser: argparse.ArgumentParser, *given: Any) -> None:
        read(parser, *given)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    for command in (part.command, part.trial):
        monkeypatch.setattr(sys, "argv", list(command))
        with pytest.raises(Understood):
            importlib.import_module(Path(command[0]).stem).main()


def test_a_part_is_stopped_at_its_limit_and_what_it_has_printed_stays(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import subprocess, sys\nprint('begun')\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
    )
    part = gpu.Part("endless", [], [], 60)
    started = time.monotonic()
    with (tmp_path / "results").open("w") as results:
        ended = gpu.run_part(part, [str(script)], 3, results, str(tmp_path))
    assert ended == "stopped after 3 s, its limit" and time.monotonic() - started < 20
    assert (tmp_path / "results").read_text() == "begun\n"


def test_where_the_time_is_over_the_rest_is_named(tmp_path: Path) -> None:
    kept, status = show(tmp_path, "--minutes", "0.1")
    assert status == 0 and kept.count("not begun: the time is over") == 2 * len(gpu.PARTS)
