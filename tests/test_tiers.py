"""The two tiers of `./launch.sh test`."""

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
