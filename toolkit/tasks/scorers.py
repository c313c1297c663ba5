"""Is this answer right? SCORERS are all rules there are, and MADE those that a task's own keys complete."""

from collections.abc import Callable
from typing import TypeVar

from toolkit.errors import PollardError
from toolkit.tasks.choice_scorers import CHOICE, label_scorer
from toolkit.tasks.math_scorer import MATH
from toolkit.tasks.own_scorer import own_scorer
from toolkit.tasks.preset import Preset
from toolkit.tasks.scorer import Scorer
from toolkit.tasks.text_scorers import CONTAINS, EXACT, F1, NUMERIC, RegexScorer

T = TypeVar("T")
SCORERS: dict[str, Scorer] = {
    "exact": EXACT,
    "numeric": NUMERIC,
    "math": MATH,
    "contains": CONTAINS,
    "choice": CHOICE,
    "f1": F1,
}
MADE: dict[str, Callable[[Preset], Scorer]] = {
    "regex": lambda preset: RegexScorer(_needed("pattern", preset.pattern)),
    "label": lambda preset: label_scorer(_needed("labels", preset.labels)),
}


def scorer_of(preset: Preset) -> Scorer:
    """What judges a task's answers. Raises PollardError where it lacks a key, or cannot be imported."""
    name = preset.scorer or "exact"
    if ":" in name:
        return own_scorer(name, answered=bool(preset.answer))
    return SCORERS[name] if name in SCORERS else MADE[name](preset)


def _needed(key: str, value: T | None) -> T:
    if value is None:
        examples = {"pattern": "'Answer: (.+)'", "labels": "[positive, negative]"}
        scorer = {"pattern": "regex", "labels": "label"}[key]
        raise PollardError(f"Scorer {scorer} needs `task.{key}`, e.g. {key}: {examples[key]}.")
    return value
