"""Formulas that mean the same: math-verify judges, in processes that are killed when a comparison does not end.

    gold "… \\boxed{\\frac{1}{2}}"    strictly right: "… \\boxed{0.5}"    flexibly too: "It is 1/2."

math-verify's own time limit is an alarm signal, which only a main thread may set and which no C code heeds. The processes are
started as a script (math_worker.py) and not by multiprocessing or pebble: CONTRIBUTING.md says why.
"""

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.tasks.math_worker import Comparison, Reply
from toolkit.tasks.quantities import units_clash
from toolkit.tasks.scorer import Scorer, Verdict, answer_part, boxed, gold_part, likeliest_part, named_answers
from toolkit.tasks.templates import Row

SECONDS = 10.0  # for one comparison, which takes 0.01 as a rule
START_SECONDS = 120.0  # to import math-verify, on a busy machine
WORKERS = 8  # at most; one for every 32 comparisons
SCRIPT = Path(__file__).with_name("math_worker.py")


class Worker:
    """One process that compares formulas. `ask` starts it when it is needed, and anew after it was killed; it ends with ours."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, comparison: Comparison, seconds: float) -> Reply | None:
        """The reply; None where it took longer than `seconds`, or the process died of it."""
        if self._process and self._process.poll() is not None:  # it died idle, not of this comparison
            self.close()
        process = self._process or self._started()
        stdin: Any = process.stdin
        try:
            stdin.write(json.dumps(comparison).encode() + b"\n")
            stdin.flush()
            reply = _next_line(process, seconds)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self.close()
        return reply

    def _started(self) -> subprocess.Popen[bytes]:
        # Without this folder on its import path (-P): our modules must not stand in for a library's
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        hello: Reply = _next_line(self._process, START_SECONDS) or {"fatal": "it did not start"}
        if "fatal" in hello:
            self.close()
            how_to = "Install it: pip install 'math-verify[antlr4_13_2]'."
            raise PollardError(
                f"Cannot compare formulas, math-verify does not start ({hello['fatal']}). {how_to}", code="scorer.no-math-verify"
            )
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # of what was not written yet
                    if pipe:
                        pipe.close()


def _next_line(process: subprocess.Popen[bytes], seconds: float) -> Reply | None:
    """The next line of the process; None where it does not come in time, or never will."""
    stdout: Any = process.stdout
    until, text = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return None
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                return None
            text += chunk
    return json.loads(text)


class MathScorer(Scorer):
    """Strict: in `\\boxed{}`, where the gold answer has it there. Flexible: behind "the answer is", or wherever
    math-verify finds a formula."""

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(lambda prediction, gold: self._single(prediction, gold).strict, lambda prediction, gold: False)
        self._seconds = seconds
        self._worker: Worker | None = None  # kept for comparisons one at a time

    def verdicts(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[Verdict]:
        """Shared by as many processes as are worth starting; none is left afterwards."""
        verdicts = [verdict_by_text(*pair) for pair in pairs]
        hard = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        compared = iter(self._compared(hard))
        return [verdict or next(compared) for verdict in verdicts]

    def _compared(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        count = min(WORKERS, len(os.sched_getaffinity(0)), -(-len(pairs) // 32))
        if not count:
            return []
        workers = [Worker() for _ in range(count)]
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def compare(pair: tuple[str, str]) -> Verdict:
            worker = idle.get()
            try:
                return verdict_by_value(worker, *pair, self._seconds)
            finally:
                idle.put(worker)

        threads = ThreadPoolExecutor(count)
        try:
            return list(threads.map(compare, pairs))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # killed even in the middle of a comparison, where another failed or Ctrl-C came
                worker.close()

    def _single(self, prediction: str, gold: str) -> Verdict:
        by_text = verdict_by_text(prediction, gold)
        if by_text:
            return by_text
        if self._worker is None:
            self._worker = Worker()
            atexit.register(self._worker.close)
        return verdict_by_value(self._worker, prediction, gold, self._seconds)


def formula_of(gold: str) -> str:
    """The formula of a gold answer: in its box, behind its mark, or all of it."""
    box = boxed(gold)
    return gold_part(gold).strip("$") if box is None else box


def strict_formula(prediction: str, gold: str) -> str | None:
    """The formula of a prediction in the gold answer's format; None where it does not keep to that."""
    box = boxed(prediction)
    return answer_part(prediction, gold).strip("$") if box is None and boxed(gold) is None else box


def verdict_by_text(prediction: str, gold: str) -> Verdict | None:
    """The verdict where the two formulas are the same text, or one of them is missing; None where they must be compared."""
    right, formula = formula_of(gold), strict_formula(prediction, gold)
    if not right or not prediction.strip():
        return Verdict(False, False)
    return Verdict(True, True) if formula is not None and formula.split() == right.split() else None


def verdict_by_value(worker: Worker, prediction: str, gold: str, seconds: float) -> Verdict:
    """The verdict of a process. A comparison that did not end in time, or that the process died of, is wrong, with a note."""
    no_box, right, formula = boxed(prediction) is None, formula_of(gold), strict_formula(prediction, gold)
    comparison: Comparison = {
        "prediction": prediction,
        "named": next(iter(named_answers(prediction)), None) if no_box else None,
        "boxed": formula,
        "prose": no_box,
        "gold": right,
    }
    reply = worker.ask(comparison, seconds)
    if reply is None:
        return Verdict(False, False, note=f"the comparison did not end within {seconds:g} s, or its process died")
    if "error" in reply:  # of the libraries, over what a model wrote
        return Verdict(False, False, note=f"the comparison failed: {reply['error']}")
    strict = reply["strict"] and not units_clash(right, formula or "")
    return Verdict(strict, strict or (reply["flexible"] and not units_clash(right, likeliest_part(prediction, gold))))


MATH = MathScorer()
