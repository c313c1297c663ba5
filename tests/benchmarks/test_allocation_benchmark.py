"""The question of other numbers of experts per block is asked on the dev slice and answered on the test set."""

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import allocation

SMALL = ["calibration.examples=16", "calibration.batch_size=4", "evaluation.examples=4", "evaluation.max_new_tokens=4"]


def test_both_plans_are_asked_the_test_set_once(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name, value in {"SUBJECTS": ("sorting",), "KEEP": "4,2"}.items():
        monkeypatch.setattr(allocation, name, value)
    monkeypatch.setattr(allocation, "evaluate", _first_questions)
    monkeypatch.setattr(sys, "argv", ["allocation.py", *SMALL])
    allocation.main()
    out = capsys.readouterr().out
    (line,) = re.findall(r"^\| sorting \| 4 \| (.+) \|$", out, re.MULTILINE)
    assert "| sorting | 2 | 2, 2, 2, 2 (2, 2, 2, 2): the only ones |" in out
    experts, uniform, measured, *_ = line.split(" | ")
    assert sum(map(int, experts.partition(" (")[0].split(", "))) == 16 and float(measured) <= float(uniform)
    assert len(list(Path("runs/allocation").iterdir())) == 2
    monkeypatch.setattr(allocation, "evaluate", None)  # nothing is asked again
    allocation.main()
    assert f"| sorting | 4 | {line} |" in capsys.readouterr().out


_REAL = allocation.evaluate


def _first_questions(model, tokenizer, task, split, examples, *rest):
    assert (split, examples) == ("test", None)
    return _REAL(model, tokenizer, task, split, 6, *rest)
