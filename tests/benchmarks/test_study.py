"""Laws of what the studies share: a document keeps its text, a checkout goes on from the results in it, groups keep their order
and end between cells."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import study


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    study.put_between(document, "<!-- a -->", "<!-- b -->", ["one"])
    assert document.read_text() == "<!-- a -->\n\none\n\n<!-- b -->\n"
    document.write_text("Words.\n\n<!-- a -->\nold\n<!-- b -->\n\nMore.\n")
    study.put_between(document, "<!-- a -->", "<!-- b -->", ["one", "two"])
    assert document.read_text() == "Words.\n\n<!-- a -->\n\none\n\ntwo\n\n<!-- b -->\n\nMore.\n"
    document.write_text("Words.\n")
    study.put_between(document, "<!-- a -->", "<!-- b -->", ["one"])
    assert document.read_text() == "Words.\n\n<!-- a -->\n\none\n\n<!-- b -->\n"


def test_a_checkout_goes_on_from_the_results_that_are_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results, path = study.StudyResults(tmp_path / "results.json", "cuts"), Path("runs/cuts/a-cell.json")
    results.restore()  # there are none yet
    path.parent.mkdir(parents=True)
    path.write_text('{"asked": "a", "seconds": 1.0}\n')
    results.collect()
    path.unlink()
    results.restore()
    assert path.read_text() == '{"asked": "a", "seconds": 1.0}\n'
    path.write_text('{"asked": "newer"}\n')
    results.restore()  # what is there stays
    assert path.read_text() == '{"asked": "newer"}\n'


def test_groups_run_at_once_and_the_cells_of_one_in_their_order() -> None:
    done: list[str] = []
    both_at_work = threading.Barrier(2, timeout=60)

    def do(cell: str) -> str | None:
        if cell in ("a1", "b1"):
            both_at_work.wait()
        done.append(cell)
        return f"{cell} failed" if cell.endswith("2") else None

    collected: list[int] = []
    failed = study.do_groups([["a1", "a2", "a3"], ["b1", "b2"]], 2, do, lambda: collected.append(len(done)))
    assert failed == ["a2 failed", "b2 failed"] and len(collected) == 5
    assert [cell for cell in done if cell[0] == "a"] == ["a1", "a2", "a3"]


def test_a_study_that_is_ended_finishes_the_cell_at_work_and_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    started, ending, handler = threading.Event(), threading.Event(), signal.getsignal(signal.SIGTERM)

    def groups() -> Iterator[list[str]]:
        yield from (["a", "b"], ["c"])
        started.set()

    def leave(status: int) -> None:
        ending.set()
        raise SystemExit(status)

    def do(cell: str) -> None:
        assert started.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)  # reaches the main thread, which waits for the groups
        assert ending.wait(60)
        done.append(cell)

    monkeypatch.setattr(study.sys, "exit", leave)
    with pytest.raises(SystemExit):
        study.do_groups(groups(), 1, do)
    assert done == ["a"] and signal.getsignal(signal.SIGTERM) is handler
