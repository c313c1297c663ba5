"""Laws of what the studies share: the paired test is exact, the interval covers, a document keeps its text."""

import random
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import study


# Worked out by hand: P(at most 1 of 9 heads) = (1 + 9) / 512, two-sided
@pytest.mark.parametrize(
    ("one", "other", "p"), [(1, 8, 20 / 512), (8, 1, 20 / 512), (0, 0, 1.0), (5, 5, 1.0), (0, 1, 1.0), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int, p: float) -> None:
    assert study.mcnemar(one, other) == pytest.approx(p)


# By the published formula (Bonett and Price 2012): (10 + 1) / 102 and (2 + 1) / 102
def test_the_interval_of_a_paired_difference() -> None:
    value, low, high = study.paired_difference(10, 2, 100)
    assert (value, low, high) == (pytest.approx(0.08), pytest.approx(0.00816, abs=1e-5), pytest.approx(0.14870, abs=1e-5))
    turned = study.paired_difference(2, 10, 100)
    assert (turned.low, turned.high) == (pytest.approx(-high), pytest.approx(-low))
    nothing = study.paired_difference(0, 0, 2000)
    assert nothing.value == 0 and nothing.low < 0 < nothing.high < 0.002


def test_it_covers_the_true_difference_as_often_as_it_says() -> None:
    chance, covered, trials = random.Random(0), 0, 2000
    for _ in range(trials):  # models of which one alone is right in 3 %, the other alone in 1 % of the questions
        draws = [chance.random() for _ in range(500)]
        found = study.paired_difference(sum(d < 0.03 for d in draws), sum(0.03 <= d < 0.04 for d in draws), 500)
        covered += found.low <= 0.02 <= found.high
    assert 0.94 < covered / trials < 0.98


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
