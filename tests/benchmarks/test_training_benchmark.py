"""The benchmark itself, tiny: both sides really train, and its verdict follows the target."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import training


@pytest.mark.parametrize(("target", "status"), [("0", 0), ("1000", 1)])
def test_the_verdict_follows_the_median(
    target: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--layers=1", "--hidden=32", "--steps=2", "--batch=2", "--repeats=1"]
    monkeypatch.setattr("sys.argv", ["training.py", *sizes, f"--target={target}"])
    assert training.main() == status
    said = capsys.readouterr().out
    assert "repeat 1: bare" in said and f"target {float(target)}" in said
