"""The comparison of refit with fine-tuning goes through the real pipeline, and ends with the number of steps that is enough."""

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import refit

SMALL = ["calibration.examples=32", "calibration.batch_size=4", "evaluation.examples=4", "evaluation.max_new_tokens=4"]


def test_steps_are_added_until_fine_tuning_is_as_good_and_nothing_finished_is_measured(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(refit, "STEPS", (1, 2))
    monkeypatch.setattr(sys, "argv", ["refit.py", *SMALL])
    refit.main()
    shown = capsys.readouterr().out
    lines = re.findall(
        r"^(refit|\d+ steps of fine-tuning) +(\d+\.\d) s +(\d+\.\d\d) GB +(\d+\.\d) % of 4 on the dev", shown, re.M
    )
    assert [what for what, *_ in lines][:2] == ["refit", "1 steps of fine-tuning"]
    scores = [float(score) for *_, score in lines]
    assert len(lines) == (2 if scores[1] >= scores[0] else 3)
    assert all(float(seconds) > 0 and float(peak) > 0.1 for _, seconds, peak, _ in lines)
    with pytest.raises(SystemExit, match="runs/refit-benchmark is there already: remove it first"):
        refit.main()
