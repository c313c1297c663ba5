"""The two tiers of `./launch.sh test`."""

import os
import subprocess
import sys

from conftest import ROOT, SLOW


def test_files_that_are_called_slow_are_there() -> None:
    assert not [name for name in SLOW if not (ROOT / "tests" / name).exists()]


def test_the_fast_tier_leaves_out_what_starts_ranks_and_what_is_slow() -> None:
    """Asked of pytest itself: the marks must be there before `-m` selects."""
    named = [f"tests/{name}" for name in ("report/test_browser.py", "test_train.py", "runtime/test_intervals.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not launcher and not slow", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    collected = {line.partition(":")[0] for line in done.stdout.splitlines() if ".py:" in line}
    assert collected == {"tests/runtime/test_intervals.py"}


def test_every_process_collects_the_same_tests_in_the_same_order() -> None:
    """What is parametrized over a set comes in another order in each worker, and pytest-xdist stops before the first test."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:xdist"]
    runs = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True)
        for seed in ("1", "2")
    ]
    collected = [[line for line in run.communicate()[0].splitlines() if "::" in line] for run in runs]
    assert len(collected[0]) > 1000
    assert collected[0] == collected[1]
