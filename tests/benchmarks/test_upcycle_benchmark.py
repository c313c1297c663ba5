"""benchmarks/upcycle.py, with a tiny model in place of a real one."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT, tiny_model

sys.path.insert(0, str(ROOT / "benchmarks"))
import upcycle as upcycle_benchmark


def test_what_upcycling_changes_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tiny_model("llama", vocab_size=768, eos_token_id=1).save_pretrained(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / name, tmp_path / "dense")
    monkeypatch.setattr(
        sys, "argv", ["upcycle.py", str(tmp_path / "dense"), "--experts", "4", "--width", "8", "--redraw", "0", "0.5"]
    )
    upcycle_benchmark.main()
    out = capsys.readouterr().out
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) M \| ([\d.]+) M \| ([\d.]+) \| ([\d.]+) \|$", out, re.MULTILINE)
    names, losses, divergences = [row[0] for row in rows], [float(row[3]) for row in rows], [float(row[4]) for row in rows]
    assert names == ["dense", "shared, width 8", "copies, redraw 0", "copies, redraw 0.5", "copies, redraw 0.5, pruned to 2"]
    assert losses[0] == losses[1] == losses[2] and divergences[:3] == [0, 0, 0]
    assert min(divergences[3:]) > 0 and re.search(r"Pruning 4 → 2: KL 0\.\d*[1-9]", out)
