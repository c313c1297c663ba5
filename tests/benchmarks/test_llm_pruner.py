"""The script's own part: what it asks of a checkout, what it prints, and where it stops.

The official code cannot be had offline. A stand-in with its interface answers here with the published formula, so this shows
nothing about the official code; tests/calibration/test_channel_gradients.py holds the formula against ours.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import llm_pruner

STAND_IN = """
import LLMPruner.torch_pruning as tp

class TaylorImportance:
    def __init__(self, group_reduction, taylor):
        assert (group_reduction, taylor) == ("sum", "vectorize")

    def __call__(self, group):
        terms = []
        for dependency, channels in group:
            weight, axis = dependency.target.module.weight, 1 if dependency.handler is tp.prune_linear_out_channels else 0
            terms.append((weight * weight.grad).sum(axis).abs()[channels])
        return sum(terms){wrong}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for folder in ("LLMPruner/torch_pruning", "LLMPruner/pruner"):
        (tmp_path / folder).mkdir(parents=True)
    tp = "def prune_linear_out_channels(): pass\ndef prune_linear_in_channels(): pass\n"
    (tmp_path / "LLMPruner" / "torch_pruning" / "__init__.py").write_text(tp)
    monkeypatch.setattr(sys, "argv", ["llm_pruner.py", str(tmp_path)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "LLMPruner" / "pruner" / "hf_llama_pruner.py"
    for name in [name for name in sys.modules if name.startswith("LLMPruner")]:
        del sys.modules[name]


def test_both_are_compared_at_three_widths(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.write_text(STAND_IN.format(wrong=""))
    llm_pruner.main()
    rows = re.findall(r"^ +(\d+) +(\d+\.\d)% +(\d+\.\d)%$", capsys.readouterr().out, re.MULTILINE)
    assert [(kept, down) for kept, down, _ in rows] == [("96", "100.0"), ("64", "100.0"), ("32", "100.0")]
    assert all(50 < float(whole) < 100 for *_, whole in rows)  # the gate's term is another


def test_another_choice_stops_it(stand_in: Path) -> None:
    stand_in.write_text(STAND_IN.format(wrong=".neg()"))
    with pytest.raises(SystemExit, match="different channels"):
        llm_pruner.main()


def test_without_a_checkout_it_says_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["llm_pruner.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="git clone"):
        llm_pruner.main()
