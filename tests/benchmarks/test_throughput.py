import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import throughput

from toolkit.cuts.checkpoint import tensor_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("throughput")
    throughput.make(folder / "original", layers=2, hidden=64)
    return folder


def test_pruning_is_measured_against_copying_what_it_keeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput.pruning(folder, repeats=2)
    assert "pruning: " in capsys.readouterr().out
    kept, target = tensor_shapes(folder / "kept"), tensor_shapes(folder / "target")
    assert kept == target and kept["model.layers.0.block_sparse_moe.gate.weight"] == (throughput.KEEP, 64)


def test_calibration_is_measured_from_the_files_and_in_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput.calibration(folder, repeats=2, count=2, length=16)
    assert "calibration: " in capsys.readouterr().out


def test_a_ratio_below_its_target_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    matrix = torch.ones(300, 300)
    work = [lambda: None, lambda: [matrix @ matrix for _ in range(20)]]
    assert throughput.ratio("pruning", "", 1.0, work[1], work[0], 3)
    assert not throughput.ratio("pruning", "", 1.0, work[0], work[1], 3)
