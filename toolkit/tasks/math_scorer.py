"""Formulas that mean the same: math-verify judges, in processes that are killed when a comparison does not end.

    gold "… \\boxed{\\frac{1}{2}}"    strictly right: "… \\boxed{0.5}"    flexibly too: "It is 1/2."

math-verify's own time limit is an alarm signal, which only a main thread may set and which no C code heeds.
"""

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.tasks.quantities import units_clash
from toolkit.tasks.scorer import Scorer, Verdict, answer_part, boxed, gold_part, likeliest_part, named_answers

SECONDS = 10.0  # for one comparison, which takes 0.01 as a rule
START = 120.0  # to import math-verify, on a machine that is busy
WORKERS = 8  # at most; one for every 32 comparisons
SCRIPT = Path(__file__).with_name("math_worker.py")


class Worker:
    """One process; `ask` starts it anew when it has been killed. Its end of file comes with ours."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer; None where it took longer, or the process died of it."""
        if self._process and self._process.poll() is not None:  # it died idle, of nothing of this question's
            self.close()
        process = self._process or self._started()
        stdin: Any = process.stdin
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            answer = _line(process, seconds)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.close()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        # Without this folder on its import path (-P): our modules must not stand in for a library's
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to heed
        )
        hello = _line(self._process, START) or {"fatal": "it did not start"}
        if "fatal" in hello:
            self.close()
            how_to = "Install it: pip install 'math-verify[antlr4_13_2]'."
            raise PollardError(f"Cannot compare formulas, math-verify does not start ({hello['fatal']}). {how_to}")
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # what was not written yet
                    if pipe:
                        pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
    """The next line of the process; None where it does not come in time, or never will."""
    stdout: Any = process.stdout
    until, text = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return None
            found = os.read(stdout.fileno(), 65536)
            if not found:
                return None
            text += found
    return json.loads(text)


class MathScorer(Scorer):
    """Strict: in `\\boxed{}`, where the gold answer has it there. Flexible: behind "the answer is", or wherever
    math-verify finds a formula."""

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(lambda prediction, gold: self._alone(prediction, gold).strict, lambda prediction, gold: False)
        self._seconds = seconds
        self._worker: Worker | None = None  # for one comparison at a time, kept

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Shared out to as many processes as are worth starting; none is left afterwards."""
        found: dict[int, Verdict] = {}
        hard: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number, (prediction, gold) in enumerate(pairs):
            easy = without_thinking(prediction, gold)
            if easy:
                found[number] = easy
            else:
                hard.put(number)
        faults: list[Exception] = []

        def work() -> None:
            worker = Worker()
            try:
                while not faults:
                    number = hard.get_nowait()
                    found[number] = compared(worker, *pairs[number], self._seconds)
            except queue.Empty:
                pass
            except Exception as error:  # raised below, in the thread that waits
                faults.append(error)
            finally:
                worker.close()

        count = min(WORKERS, len(os.sched_getaffinity(0)), -(-hard.qsize() // 32))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        return [found[number] for number in range(len(pairs))]

    def _alone(self, prediction: str, gold: str) -> Verdict:
        easy = without_thinking(prediction, gold)
        if easy:
            return easy
        if self._worker is None:
            self._worker = Worker()
            atexit.register(self._worker.close)
        return compared(self._worker, prediction, gold, self._seconds)


def formula_of(gold: str) -> str:
    """What is to be found: in the gold answer's box, behind its mark, or all of it."""
    found = boxed(gold)
    return gold_part(gold).strip("$") if found is None else found


def strict_formula(prediction: str, gold: str) -> str | None:
    """What the prediction answers, in the gold answer's format: None where it does not keep to it."""
    found = boxed(prediction)
    return answer_part(prediction, gold).strip("$") if found is None and boxed(gold) is None else found


def without_thinking(prediction: str, gold: str) -> Verdict | None:
    """The verdict where the two formulas are the same text, or nothing was written."""
    right, found = formula_of(gold), strict_formula(prediction, gold)
    if not right or not prediction.strip():
        return Verdict(False, False)
    return Verdict(True, True) if found is not None and found.split() == right.split() else None


def compared(worker: Worker, prediction: str, gold: str, seconds: float) -> Verdict:
    """One that did not end in time, or that its process died of, is wrong, with a note that says so."""
    no_box, right, found = boxed(prediction) is None, formula_of(gold), strict_formula(prediction, gold)
    question = {
        "prediction": prediction,
        "said": next(iter(named_answers(prediction)), None) if no_box else None,
        "boxed": found,
        "prose": no_box,
        "gold": right,
    }
    answer = worker.ask(question, seconds)
    if answer is None:
        return Verdict(False, False, note=f"the comparison did not end within {seconds:g} s, or its process died")
    if "error" in answer:  # of the libraries, over what a model wrote
        return Verdict(False, False, note=f"the comparison failed: {answer['error']}")
    strict = answer["strict"] and not units_clash(right, found or "")
    return Verdict(strict, strict or (answer["flexible"] and not units_clash(right, likeliest_part(prediction, gold))))


MATH = MathScorer()
