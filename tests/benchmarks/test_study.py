"""Law of what the studies share: a document keeps its text."""

import sys
from pathlib import Path

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
