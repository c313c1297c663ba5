"""Calibration and search at a large model's size: with tiny sizes, it runs on any machine."""

import os
import re
import subprocess
import sys

from conftest import ROOT

TINY = ["--layers", "2", "--hidden", "64", "--width", "32", "--sequences", "4", "--length", "16", "--batch-size", "2"]


def test_it_times_calibration_exact_selection_and_pruning_and_scales_them_to_all_layers() -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/mixtral_shape.py", *TINY], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Mixtral, 2 of 32 layers" in run.stdout and "4 x 16 = 64 tokens" in run.stdout
    rows = dict(re.findall(r"^(.+?)\s+(\d+\.\d+)\s+\d+\.\d$", run.stdout, re.M))
    whole = rows.pop("calibration, exact selection and pruning")
    parts = [float(seconds) for name, seconds in rows.items() if not name.startswith("statistics of every")]
    assert len(parts) == 3 and abs(sum(parts) - float(whole)) < 0.02
