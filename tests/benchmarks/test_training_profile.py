"""The profile of a training step: every part is seen, time is neither lost nor counted twice, and the table says it in shares."""

import re
import sys
from collections import Counter

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import training_profile


def test_every_part_takes_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--layers=1", "--hidden=32", "--steps=2", "--batch=2"]
    training_profile.main([*sizes, "--methods=full,qlora", "--ways=recover,teacher"])
    said = capsys.readouterr().out
    assert "| part | full | full, teacher | qlora | qlora, teacher |" in said
    rows = {
        cells[1]: cells[2:-1]
        for line in said.splitlines()
        if line.startswith("| ")
        for cells in [[*map(str.strip, line.split("|"))]]
    }
    shares = {part: [float(share.rstrip("%")) for share in rows[part]] for part in training_profile.PARTS}
    for column in zip(*shares.values(), strict=True):
        assert sum(column) == pytest.approx(100, abs=1)
    for part in training_profile.PARTS:
        assert all(share > 0 for share in shares[part]), part
    assert re.search(r"full: \d+\.\d+ s a step, profiled", said)


def test_the_table_is_of_shares() -> None:
    times = Counter({training_profile.PRODUCTS: 300_000, training_profile.LOSS: 100_000})
    lines = training_profile.table({"full": (times, 0.4)}).splitlines()
    assert f"| {training_profile.PRODUCTS} | 75.0% |" in lines and "| ms a step | 400 |" in lines
