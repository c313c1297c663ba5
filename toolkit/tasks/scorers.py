"""Is this answer right? SCORERS are all rules there are, and MADE those that a task's own keys complete."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from toolkit.runtime.errors import PollardError
from toolkit.tasks.choice_scorers import CHOICE, label_scorer
from toolkit.tasks.math_scorer import MATH
from toolkit.tasks.own_scorer import own_scorer
from toolkit.tasks.preset import Preset
from toolkit.tasks.readings import MARK, declares_mark
from toolkit.tasks.scorer import Scorer, Verdict
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
SCORER_FACTORIES: dict[str, Callable[[Preset], Scorer]] = {
    "regex": lambda preset: RegexScorer(_needed("pattern", preset.pattern)),
    "label": lambda preset: label_scorer(_needed("labels", preset.labels)),
}


class BehindMark(Scorer):
    """Of a task whose completions end with `#### answer` and whose `task.answer` is the bare answer: texts are compared behind
    the mark, as in the completions."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(
            lambda prediction, gold: scorer.strict(prediction, self._marked(gold)),
            lambda prediction, gold: scorer.flexible(prediction, self._marked(gold)),
        )
        self._scorer = scorer

    @staticmethod
    def _marked(gold: str) -> str:
        return f"{MARK} {gold.strip()}" if gold.strip() and "\n" not in gold.strip() and not declares_mark(gold) else gold

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        return self._scorer.verdicts([(prediction, self._marked(gold)) for prediction, gold in pairs])

    def gold_faults(self, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        return self._scorer.gold_faults([(completion, self._marked(gold)) for completion, gold in pairs])

    def as_gold(self, prediction: str, gold: str) -> str:
        return self._scorer.as_gold(prediction, self._marked(gold))


def scorer_of(preset: Preset) -> Scorer:
    """What judges a task's answers. Raises PollardError where it lacks a key, or cannot be imported."""
    name = preset.scorer or "exact"
    if ":" in name:
        return own_scorer(name, answered=bool(preset.answer))
    scorer = SCORERS[name] if name in SCORERS else SCORER_FACTORIES[name](preset)
    marked = name != "numeric" and preset.answer and declares_mark(preset.completion or "")
    return BehindMark(scorer) if marked else scorer


def _needed(key: str, value: T | None) -> T:
    if value is None:
        examples = {"pattern": "'Answer: (.+)'", "labels": "[positive, negative]"}
        scorer = {"pattern": "regex", "labels": "label"}[key]
        raise PollardError(f"Scorer {scorer} needs `task.{key}`, e.g. {key}: {examples[key]}.")
    return value
