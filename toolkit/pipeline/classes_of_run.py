"""Results by class of a run whose task is a classification: by the task's own scorer, from the answers that lie there."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report.answer import Answer
from toolkit.report.class_results import ClassFacts, class_facts
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Task
from toolkit.tasks.scorer import gold_part
from toolkit.tasks.text_scorers import strict_letter

OF_LABELS = ("label", "choice", "exact")
"""Scorers whose gold answers can be a few labels."""


def classes_of_run(recipe: Recipe | None, answers: Mapping[Role, Sequence[Answer]]) -> ClassFacts | None:
    """None where the task is no classification, and where its own keys are not complete."""
    there = {role: found for role, found in answers.items() if found}
    if not recipe or not there:
        return None
    with suppress(PollardError):
        task = Task(recipe.task)
        scorer = task.preset.scorer or "exact"
        if scorer not in OF_LABELS:
            return None
        by_letter = scorer == "choice"
        label_of = (lambda gold: strict_letter(gold_part(gold))) if by_letter else gold_part
        labels = tuple(task.preset.labels or ()) if scorer == "label" else ()
        found = class_facts(there, label_of, task.scorer.strict, labels)
        return found.model_copy(update={"by_letter": by_letter}) if found else None
    return None
