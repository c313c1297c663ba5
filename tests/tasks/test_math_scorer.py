"""What math-verify is asked, and what happens when it does not answer. (What it answers: test_hard_answers.py.)"""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import raises

from toolkit.tasks import math_scorer
from toolkit.tasks.math_scorer import MathScorer, Worker, formula_of, strict_formula
from toolkit.tasks.scorer import Verdict

ENDLESS = r"\boxed{9^{9^{9^9}}}"


def children() -> set[int]:
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for file in found for pid in file.read_text().split()}


@pytest.mark.parametrize(
    ("prediction", "gold", "asked", "wanted"),
    [
        (r"a \boxed{1} b \boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\frac{1}{2}", "0.5"),
        ("1/2", r"\boxed{0.5}", None, "0.5"),
        ("#### 1/2", "#### 0.5", "1/2", "0.5"),
        (r"\boxed{2}", "$2$", "2", "2"),
        (r"\boxed{\frac{1}{2}", r"\boxed{1}", None, "1"),
    ],
)
def test_formulas_stand_in_the_box_or_behind_the_mark(prediction: str, gold: str, asked: str | None, wanted: str) -> None:
    assert (strict_formula(prediction, gold), formula_of(gold)) == (asked, wanted)


TRUE, FALSE, IN_WORDS = Verdict(True, True), Verdict(False, False), Verdict(False, True)
JUDGED = [
    # What cannot be parsed is not compared by a part of it
    (r"\boxed{1-\frac{1}{\mathrm{e}}}", r"\boxed{1+\frac{1}{\mathrm{e}}}", FALSE),
    (r"\boxed{1-\frac{1}{\mathrm{e}}}", r"\boxed{1-\frac{1}{e}}", TRUE),
    (r"\boxed{\unknown{2}}", r"\boxed{\unknown{3}}", FALSE),
    (r"\boxed{2}", r"\boxed{\unknown{3}+2}", FALSE),
    (r"\boxed{1}", r"The answer is $1-\unknown{e}$.", FALSE),
    (r"\boxed{3}", "The answer is x^2 + 3.", FALSE),
    (r"\boxed{x^2+3}", "The answer is x^2 + 3.", IN_WORDS),
    # Numbers are compared relative to their size
    (r"\boxed{\frac{1}{2^{99}}}", r"\boxed{\frac{1}{2^{98}}}", FALSE),
    (r"\boxed{\frac{1}{2^{99}}}", r"\boxed{2^{-99}}", TRUE),
    (r"\boxed{\frac{1}{2004!}}", r"\boxed{\frac{1}{2006!}}", FALSE),
    (r"\boxed{0}", r"\boxed{10^{-30}}", FALSE),
    (r"\boxed{e^{-100}}", r"\boxed{e^{-101}}", FALSE),
    (r"\boxed{0.0000001}", r"\boxed{0.0000002}", FALSE),
    (r"\boxed{1.6\times 10^{-19}}", r"\boxed{1.7\times 10^{-19}}", FALSE),
    (r"\boxed{1.6\times 10^{-19}}", r"\boxed{0.16\times 10^{-18}}", TRUE),
    (r"\boxed{\frac13}", r"\boxed{0.333333}", TRUE),
    (r"\boxed{\frac13}", r"\boxed{0.33}", FALSE),
    (r"\boxed{\left(\frac{1}{2^{99}},1\right)}", r"\boxed{\left(\frac{1}{2^{98}},1\right)}", FALSE),
    (r"\boxed{\{10^{-20},1\}}", r"\boxed{\{10^{-21},1\}}", FALSE),
    (r"\boxed{\begin{pmatrix}10^{-20}\\1\end{pmatrix}}", r"\boxed{\begin{pmatrix}10^{-21}\\1\end{pmatrix}}", FALSE),
    (r"\boxed{[0,10^{-20}]}", r"\boxed{[0,10^{-21}]}", FALSE),
    (r"\boxed{x<10^{-20}}", r"\boxed{x<10^{-21}}", FALSE),
    (r"\boxed{x+10^{-20}}", r"\boxed{x+10^{-21}}", FALSE),
    (r"\boxed{x=10^{-20}}", r"\boxed{10^{-21}}", FALSE),
    # Mixed numbers, repeating decimals
    (r"\boxed{2}", "The answer is 2 2/3.", FALSE),
    (r"\boxed{11\frac56}", "The answer is 11 5/6.", IN_WORDS),
    (r"\boxed{-2\frac13}", "The answer is -2 1/3.", IN_WORDS),
    (r"\boxed{\frac83}", r"\boxed{2 2/3}", TRUE),
    (r"\boxed{0.\overline{3}}", r"\boxed{\frac13}", TRUE),
    # Roots of quotients, where they are real
    (r"\boxed{\sqrt{1/n}}", r"\boxed{\frac{1}{\sqrt{n}}}", TRUE),
    (r"\boxed{\sqrt{\frac{a}{b}}}", r"\boxed{\frac{\sqrt{a}}{\sqrt{b}}}", TRUE),
    (r"\boxed{\sqrt{xy}}", r"\boxed{\sqrt{x}\sqrt{y}}", TRUE),
    (r"\boxed{x}", r"\boxed{\sqrt{x^2}}", FALSE),
    (r"\boxed{|x|}", r"\boxed{x}", FALSE),
    # In sentences
    (r"\boxed{5}", "So we get\n$$x=5.$$", IN_WORDS),
    (r"\boxed{(3,4)}", "The answer is (3, 4).", IN_WORDS),
    (r"\boxed{\frac34}", "The answer is 3/4 of it.", IN_WORDS),
    (r"\boxed{\text{(A)}}", "The answer is (A).", IN_WORDS),
    ("72", "It is 72.", TRUE),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}", TRUE),
    (r"\boxed{\$32,\!348}", r"The answer is \$32,348.", IN_WORDS),
    # Units
    (r"\boxed{10\text{ inches}}", r"\boxed{10\text{ cm}}", FALSE),
    (r"\boxed{10\text{ inches}}", r"\boxed{10}", TRUE),
    (r"\boxed{10\text{ inches}}", r"\boxed{10\text{ in}}", TRUE),
    (r"\boxed{10\text{ inches}}", "The answer is 10 cm.", FALSE),
    (r"\boxed{10\text{ inches}}", "It is 10 inches.", IN_WORDS),
    (r"\boxed{5\text{ m}}", r"\boxed{5\text{ m}^2}", FALSE),
    (r"\boxed{45\text{ mph}}", r"\boxed{45\text{ miles per hour}}", TRUE),
    (r"\boxed{81\text{ teachers}}", r"\boxed{81\text{ people}}", TRUE),
]


def test_formulas_are_judged_by_their_value() -> None:
    found = MathScorer().verdicts([(prediction, gold) for gold, prediction, _ in JUDGED])
    wrong = [(*case, verdict) for case, verdict in zip(JUDGED, found, strict=True) if verdict != case[2]]
    assert not wrong


# SymPy would compute 9^(9^(9^9)) for longer than anybody waits, and no signal reaches it there.
def test_a_comparison_that_does_not_end_is_killed_told_and_counted_as_wrong() -> None:
    scorer, before = MathScorer(seconds=2), children()
    endless, after = scorer.verdicts([(ENDLESS, r"\boxed{3}"), (r"\boxed{0.25}", r"\boxed{\frac14}")])
    assert endless == Verdict(False, False, note="the comparison did not end within 2 s, or its process died")
    assert after == Verdict(True, True)
    assert children() <= before


def test_many_comparisons_are_shared_out_and_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    before = children()
    pairs = [(f"\\boxed{{{i}/8}}", f"\\boxed{{{i / 8 if i % 2 else i}}}") for i in range(1, 70)]
    found = MathScorer().verdicts(pairs)
    assert [verdict.strict for verdict in found] == [bool(i % 2) for i in range(1, 70)]
    assert children() <= before


# A scorer may be asked on a thread: an alarm signal, which math-verify itself uses, could not be set there.
def test_it_works_in_a_thread_and_one_at_a_time() -> None:
    scorer, found = MathScorer(), []
    thread = threading.Thread(target=lambda: found.append(scorer.strict(r"\boxed{0.5}", r"\boxed{\frac12}")))
    thread.start()
    thread.join()
    assert found == [True] and scorer.strict(r"\boxed{0.5}", r"\boxed{\frac13}") is False
    assert scorer._worker is not None
    scorer._worker.close()


def test_the_same_text_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert MathScorer().verdicts([(r"\boxed{x}", r"so \boxed{ x }"), ("", r"\boxed{x}")]) == [
        Verdict(True, True),
        Verdict(False, False),
    ]


def test_a_worker_that_died_is_started_anew() -> None:
    worker, question = Worker(), {"prediction": "1/2", "named": None, "boxed": None, "prose": True, "gold": "0.5"}
    assert worker.ask(question, 60) == {"strict": False, "flexible": True}
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker.ask(question, 60) == {"strict": False, "flexible": True}
    worker.close()


def test_without_math_verify_it_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import json\nprint(json.dumps({'fatal': \"No module named 'math_verify'\"}))\n")
    monkeypatch.setattr(math_scorer, "SCRIPT", script)
    with raises("scorer.no-math-verify", "No module named 'math_verify'", "pip install"):
        MathScorer().verdicts([(r"\boxed{1}", r"\boxed{2}")])
