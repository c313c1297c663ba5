"""What of a task decides how its answers are judged, for fingerprints: what its scorer does, where that is the user's own
file, and the examples that stand before every question, which come from train."""

from typing import Any

from toolkit.fingerprinting import fingerprint_of_source
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task
from toolkit.tasks.own_scorer import source_of

# Of the rules by which answers are taken out of what was written, and judged: with others a finished evaluation is done again
RULES = 2


def own_scorer_identity(recipe: TaskRecipe) -> list[Any]:
    """The content of the user's own scorer's file; nothing for the toolkit's own."""
    own = recipe.scorer if recipe.scorer and ":" in recipe.scorer else None
    return [fingerprint_of_source(source_of(own) or own)] if own else []


def identity_of_scoring(task: Task) -> list[Any]:
    """Beside the task's own keys and the split that is asked."""
    shots = [task.fingerprint("train")] if task.preset.shots else []
    return [RULES, *own_scorer_identity(task.recipe), *shots]
