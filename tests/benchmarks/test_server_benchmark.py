import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import server_requests as benchmark


def test_a_small_server_is_asked_and_its_share_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--slots", "3", "--seconds", "0.05", "--rounds", "4", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["server_requests.py", *options])
    assert benchmark.main() in (0, 1)  # how busy it is kept on this machine is no matter
    said = capsys.readouterr().out
    assert "3 slots, 0.05 s an answer, at most 60 answers/s: 0." in said and f"target {benchmark.TARGET}" in said


def test_the_server_answers_no_faster_than_it_says() -> None:
    with benchmark.serving(3, 0.05) as url:
        assert all(0 < share <= 1 for share in benchmark.shares(url, 3, 0.05, repeats=2, rounds=3))
