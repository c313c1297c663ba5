"""The benchmark itself, tiny: both sides really train, and its verdict follows the target."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import training


@pytest.mark.parametrize(("target", "status"), [("0", 0), ("1000", 1)])
def test_the_verdict_follows_the_median(target: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--layers=1", "--hidden=32", "--steps=2", "--batch=2", "--repeats=1"]
    assert training.main([*sizes, f"--target={target}"]) == status
    said = capsys.readouterr().out
    assert "full, repeat 1: s/step (CPU) bare" in said and f"target {float(target)}" in said


@pytest.mark.parametrize("lengths", ["playground", "gsm8k"])
def test_every_way_is_compared_and_packing_trains_the_same(lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--layers=1", "--hidden=32", "--steps=2", "--batch=4", "--repeats=1", "--target=0", "--checkpointing"]
    ways = ["--methods=full,lora", "--ways=recover,packing,teacher,router", f"--lengths={lengths}"]
    assert training.main([*sizes, *ways]) == 0  # which stops where losses differ
    said = capsys.readouterr().out
    compared = [
        f"steps/s of {way} / {other}" for way, other in [("recover", "bare"), ("packing", "recover"), ("teacher", "recover")]
    ]
    assert all(f"{method}: {pair}: median" in said for method in ("full", "lora") for pair in compared)
    assert "full: steps/s of router / recover: median" in said and "of all positions," in said
