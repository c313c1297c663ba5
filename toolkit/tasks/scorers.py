"""Which scorer a recipe's `task.scorer` names: one of SCORERS, one that a key of the task completes, or a function of the
user's own, `my_module:my_function`, from the folder where the command was started.

def my_function(prediction: str, gold: str) -> bool: …      # my_module.py

`gold` is what `task.answer` says, which need not be an answer: HumanEval and MBPP have tests there, and the function runs them.
It may return a degree from 0 to 1 (the share of tests that pass) instead of True and False, also as NumPy or PyTorch have it.
"""

import contextlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from toolkit.runtime.errors import PollardError
from toolkit.tasks.math_scorer import MATH
from toolkit.tasks.presets import Preset
from toolkit.tasks.scorer import MarkedScorer, Scorer, Verdict, declares_mark, quoted
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
        return own_scorer(name, has_gold=bool(preset.answer))
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

    def __init__(self, name: str, function: Callable[[str, str], Any], has_gold: bool = False) -> None:
        """`has_gold`: there is a `task.answer` apart from the completion, and the completion must be right by it."""
        super().__init__(lambda prediction, gold: self._degree(prediction, gold) == 1, lambda prediction, gold: False)
        self._name, self._function, self._has_gold = name, function, has_gold

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        verdicts = [self._verdict(*pair) for pair in pairs]
        if all(verdict.credit in (None, 0.0, 1.0) for verdict in verdicts):  # true or false, however it is written
            return [verdict._replace(credit=None) for verdict in verdicts]
        return verdicts

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        try:
            degree = self._degree(prediction, gold)
        except Exception as error:  # reported with the item, and the stage fails
            return Verdict(False, False, f"{type(error).__name__}: {error}")
        return Verdict(degree == 1, degree >= HALF, credit=degree)

    def _degree(self, prediction: str, gold: str) -> float:
        try:
            with contextlib.chdir("."):  # back to the working folder, wherever tests have been run
                result = self._function(prediction, gold)
        except SystemExit as error:  # of code that it runs
            raise RuntimeError(f"it ended Python: sys.exit({error.code!r})") from None
        try:
            degree = math.nan if isinstance(result, str) else float(result.item() if hasattr(result, "item") else result)
        except (TypeError, ValueError, RuntimeError):  # neither a number nor an array of one
            degree = math.nan
        if not 0 <= degree <= 1:
            raise TypeError(f"{self._name} must say True or False, or a degree from 0 to 1, and said {quoted_value(result)}")
        return degree

    def gold_faults(self, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        """What the function raises; and a completion that is wrong by the `task.answer` of its own line."""
        return [self._fault(*pair, verdict) for pair, verdict in zip(pairs, self.verdicts(pairs), strict=True)]

    def _fault(self, completion: str, gold: str, verdict: Verdict) -> str | None:
        if verdict.error:
            return f"fails on the completion {quoted(completion)} itself: {verdict.error}"
        if self._has_gold and not verdict.flexible:
            return f"says that the completion {quoted(completion)} is wrong by its own answer {quoted(gold)}"
        return None


def quoted_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def own_scorer(name: str, has_gold: bool = False) -> Scorer:
    """Raises PollardError where the module or the function cannot be imported."""
    return OwnScorer(name, _imported(name), has_gold)


def scorer_file(name: str) -> str | None:
    """The file of an own scorer's module, whose content decides results; None where there is no such module."""
    spec = _with_working_folder(lambda: importlib.util.find_spec(name.partition(":")[0]))
    return spec.origin if spec else None


def _imported(name: str) -> Callable[[str, str], Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = _with_working_folder(lambda: importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise PollardError(
                f"task.scorer {name}: {module_name} needs {error.name}, which is not installed.", code="scorer.import"
            ) from error
        raise PollardError(
            f"task.scorer {name}: there is no module {module_name}. It is looked for in {os.getcwd()} "
            f"({module_name.replace('.', '/')}.py) and among what is installed.",
            code="scorer.no-module",
        ) from None
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(f"task.scorer {name}: {module_name} cannot be imported ({what}).", code="scorer.import") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_")) or "none"
        raise PollardError(
            f"task.scorer {name}: {module_name} has no function {function_name}. Functions there: {functions}.",
            code="scorer.no-function",
        )
    if inspect.iscoroutinefunction(function):
        raise PollardError(
            f"task.scorer {name}: {function_name} is `async`, and a scorer answers at once: write a plain function.",
            code="scorer.async",
        )
    return function


def _with_working_folder(find: Callable[[], Any]) -> Any:
    """Calls `find` with the working folder first on the import path, as in Python's own prompt."""
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return find()
    finally:
        sys.path.remove(os.getcwd())
