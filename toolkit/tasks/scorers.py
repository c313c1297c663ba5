"""Which scorer a recipe's `task.scorer` names: one of SCORERS, one that a key of the task completes, or a function of the
user's own, `my_module:my_function` or `my_file.py:my_function`, from the folder where the command was started.

def my_function(prediction: str, gold: str) -> bool: …      # my_module.py
def my_judge(prediction: str, gold: str, row: dict) -> float: …      # the line of data as well


`gold` is what `task.answer` says, which need not be an answer: HumanEval and MBPP have tests there, and the function runs them.
It may return a degree from 0 to 1 (the share of tests that pass) instead of True and False, also as NumPy or PyTorch have it.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from toolkit.runtime.errors import PollardError
from toolkit.runtime.own_function import load_function, refuse_async
from toolkit.runtime.progress import progress
from toolkit.tasks.math_scorer import MATH
from toolkit.tasks.presets import Preset
from toolkit.tasks.scorer import MarkedScorer, Scorer, Verdict, declares_mark, quoted
from toolkit.tasks.templates import Row
from toolkit.tasks.text_scorers import CHOICE, CONTAINS, EXACT, F1, NUMERIC, LabelScorer, RegexScorer

T = TypeVar("T")
SCORERS: dict[str, Scorer] = {
    "exact": EXACT,
    "numeric": NUMERIC,
    "math": MATH,
    "contains": CONTAINS,
    "choice": CHOICE,
    "f1": F1,
}
SCORER_FACTORIES: dict[str, Callable[[Preset], Scorer]] = {
    "regex": lambda preset: RegexScorer(_required("pattern", preset.pattern)),
    "label": lambda preset: LabelScorer(_required("labels", preset.labels)),
}


def scorer_of(preset: Preset) -> Scorer:
    """The scorer of a task. Raises PollardError where a key is missing, or a function cannot be imported."""
    name = preset.scorer or "exact"
    if ":" in name:
        return OwnScorer(name, load_function(name, "task.scorer", "scorer"), has_gold=bool(preset.answer))
    scorer = SCORERS[name] if name in SCORERS else SCORER_FACTORIES[name](preset)
    marked = name != "numeric" and preset.answer and declares_mark(preset.completion or "")
    return MarkedScorer(scorer) if marked else scorer


def _required(key: str, value: T | None) -> T:
    if value is None:
        examples = {"pattern": "'Answer: (.+)'", "labels": "[positive, negative]"}
        scorer = {"pattern": "regex", "labels": "label"}[key]
        raise PollardError(f"Scorer {scorer} needs `task.{key}`, e.g. {key}: {examples[key]}.", code="task.key-missing")
    return value


HALF = 0.5


class OwnScorer(Scorer):
    """Strict: True, or a degree of 1. Flexible: a degree of at least one half. Where a function gives degrees, their mean is
    reported as well."""

    def __init__(self, name: str, function: Callable[..., Any], has_gold: bool = False) -> None:
        """`function` takes (prediction, gold), and where it has a parameter `row`, the line of data too. `has_gold`: there is a
        `task.answer` apart from the completion, and the completion must be right by it. Raises PollardError for a function that
        takes anything else, or is `async`."""
        super().__init__(lambda prediction, gold: self.is_right(prediction, gold), lambda prediction, gold: False)
        refuse_async(function, f"scorer {name}", "scorer")
        self.name, self._function, self._has_gold = name, function, has_gold
        self.takes_row = _takes_row(name, function)

    def verdicts(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[Verdict]:
        judged = progress(list(zip(pairs, rows or [{}] * len(pairs), strict=True)), "judging")  # it may ask a server
        verdicts = [self._verdict_by(*pair, row) for pair, row in judged]
        if all(verdict.credit in (None, 0.0, 1.0) for verdict in verdicts):  # true or false, however it is written
            return [verdict._replace(credit=None) for verdict in verdicts]
        return verdicts

    def is_right(self, prediction: str, gold: str, row: Row | None = None) -> bool:
        return self._degree(prediction, gold, row or {}) == 1

    def _verdict_by(self, prediction: str, gold: str, row: Row) -> Verdict:
        try:
            degree = self._degree(prediction, gold, row)
        except Exception as error:  # reported with the item, and the stage fails
            return Verdict(False, False, f"{type(error).__name__}: {error}")
        return Verdict(degree == 1, degree >= HALF, credit=degree)

    def _degree(self, prediction: str, gold: str, row: Row) -> float:
        line = {"row": dict(row)} if self.takes_row else {}
        try:
            with contextlib.chdir("."):  # back to the working folder, wherever tests have been run
                result = self._function(prediction, gold, **line)
        except SystemExit as error:  # of code that it runs
            raise RuntimeError(f"it ended Python: sys.exit({error.code!r})") from None
        try:
            degree = math.nan if isinstance(result, str) else float(result.item() if hasattr(result, "item") else result)
        except (TypeError, ValueError, RuntimeError):  # neither a number nor an array of one
            degree = math.nan
        if not 0 <= degree <= 1:
            raise TypeError(f"{self.name} must say True or False, or a degree from 0 to 1, and said {quoted_value(result)}")
        return degree

    def gold_faults(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Row] | None = None) -> list[str | None]:
        """What the function raises; and a completion that is wrong by the `task.answer` of its own line. One that looks at the
        line may judge by anything there, and may ask a server that costs: it is asked about the first alone, to see that it
        answers."""
        asked = pairs[:1] if self.takes_row else pairs
        verdicts = self.verdicts(asked, rows[: len(asked)] if rows else None)
        faults = [self._fault(*pair, verdict) for pair, verdict in zip(asked, verdicts, strict=True)]
        return [*faults, *[None] * (len(pairs) - len(asked))]

    def _fault(self, completion: str, gold: str, verdict: Verdict) -> str | None:
        if verdict.error:
            return f"fails on the completion {quoted(completion)} itself: {verdict.error}"
        if self._has_gold and not self.takes_row and not verdict.flexible:
            return f"says that the completion {quoted(completion)} is wrong by its own answer {quoted(gold)}"
        return None


def _takes_row(name: str, function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C have none
        return False
    takes_row = "row" in signature.parameters
    try:
        signature.bind("", "", **({"row": {}} if takes_row else {}))
    except TypeError as error:
        raise PollardError(
            f"scorer {name} takes {signature}: it must take (prediction, gold), or (prediction, gold, row) for the line of data "
            f"as well ({error}).",
            code="scorer.signature",
        ) from None
    return takes_row


def quoted_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
