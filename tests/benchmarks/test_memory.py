"""Laws of the memory benchmark: its checkpoint is one that transformers reads, its arithmetic is the files', it can fail."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import memory

from toolkit.moe import load_model

TINY = memory.Size(layers=2, hidden=64, width=48, vocabulary=100, batches=2, length=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "checkpoint"
    folder.mkdir()
    memory.write_checkpoint(folder, TINY)
    return folder


def test_sizes_are_those_of_the_model_that_transformers_reads(checkpoint: Path) -> None:
    model = load_model(str(checkpoint))
    parts = {TINY.layer(): model.model.layers[1], TINY.embeddings: model.model.embed_tokens}
    assert all(size == sum(p.nbytes for p in part.parameters()) for size, part in parts.items())
    written = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert sum(p.nbytes for p in model.parameters()) <= written <= 1.02 * sum(p.nbytes for p in model.parameters()) + 10_000


@pytest.mark.parametrize("work", memory.WORK)
def test_a_piece_of_work_is_measured(
    work: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for made in ("pruned", "refitted"):
        shutil.rmtree(checkpoint.with_name(made), ignore_errors=True)
    if work == "refit":
        memory.prune(str(checkpoint), TINY)
    size = [f"--{name}={value}" for name, value in TINY._asdict().items()]
    monkeypatch.setattr(sys, "argv", ["memory.py", *size, "--measure", work, str(checkpoint)])
    memory.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert memory.show(work, TINY, 1, found, memory.bounds(checkpoint, TINY)[work])
    assert (checkpoint.with_name("refitted") / "config.json").exists() == (work == "refit")


def test_memory_that_is_taken_is_seen_and_a_broken_bound_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(memory.WORK, "hoarding", lambda folder, size: torch.ones(50_000_000).sum().item())
    found = memory.measure("hoarding", "", TINY)
    assert 190e6 < found["peak"] < 400e6
    assert not memory.show("hoarding", TINY, 1, found, 100_000_000)
    assert "peak  0.2" in (out := capsys.readouterr().out) and out.endswith("BROKEN\n")
