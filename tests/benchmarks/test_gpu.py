"""One command shows everything that a GPU has to show: tried with tiny sizes, on any machine."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.parametrize("number", range(1, len(gpu.PARTS) - len(gpu.METHODS) + 2))
def test_every_part_runs_to_its_end(tmp_path: Path, number: int) -> None:
    """Of the runs of the embedded model, the first: they differ in one key, which tests/recovery tries."""
    kept, status = show(tmp_path, str(number))
    assert gpu.PARTS[number - 1].question in kept and len(kept.splitlines()) > 10
    ended = re.search(rf"^\| {number} \| .* \| (.*) \|$", kept, re.M)
    assert ended and re.fullmatch(r"\d+ s|failed after \d+ s \(exit status 1\)", ended[1]), kept
    if ended[1].startswith("failed"):  # so small, overhead outweighs the work
        assert status == 1 and "target" in kept and "Traceback" not in kept
    else:
        assert status == 0


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
