"""What decides what recovery learns from, and each of its trainings, as fingerprints (a part of pipeline/fingerprints.py).

teaching     the data, the original's own answers, its cache: made once, for every training of a run
student      answers of the model that is trained, the teacher's cache of them, the model that the training leaves: once a round
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.finetuning import FinetuningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import SourceRecipe
from toolkit.recovery.training_data import sources_without_student
from toolkit.runtime.files import fingerprint_of
from toolkit.runtime.own_function import function_identity
from toolkit.tasks import DataCache

ROUNDS_OF_STUDENT: Any = {"data": {"__all__": {"rounds"}}}


class Teaching(NamedTuple):
    """Fingerprints of what recovery learns from; None for a stage that the recipe does not need."""

    data: str
    answers: str | None
    teacher: str | None


class StudentFingerprints(NamedTuple):
    """Of one training on what the student writes: its answers, the teacher's cache of them, and the model that it leaves."""

    answers: str
    teacher: str
    model: str


def teaching_of(recipe: Recipe, data: DataCache, model: str, own_data: str, test_data: Any, seams: Sequence[str]) -> Teaching:
    """`own_data`, `test_data`: fingerprints of the task's two files. `seams`: what decides where hidden states are compared; none
    where they are not."""
    finetuning, mix = recipe.finetuning, [*sources_without_student(recipe).values()]
    # A mix leaves out what overlaps with the test set, so it depends on that, too
    others = [sources_identity(recipe, mix, data), test_data] if finetuning.data else []
    examples = fingerprint_of(own_data, others, finetuning.max_length, finetuning.examples, recipe.seed)
    answers = teacher = None
    if any(source.self_generated for source in mix):
        answers = fingerprint_of(model, examples, recipe.evaluation.max_new_tokens, recipe.model.dtype)
    if finetuning.teacher and mix:
        teacher = fingerprint_of(model, examples, answers, finetuning.distillation.temperature, *seams)
    return Teaching(examples, answers, teacher)


def training_settings(recipe: Recipe, finetuning: FinetuningRecipe, teaching: Teaching) -> list[Any]:
    settings = finetuning.model_dump(exclude=ROUNDS_OF_STUDENT)  # how many trainings follow decides nothing of the first
    return [teaching, settings, recipe.seed, recipe.model.dtype, *_selecting(recipe), *function_identity(finetuning.loss)]


def shared_training(recipe: Recipe, teaching: Teaching) -> list[Any]:
    """What decides a training without what the student writes, and without seams: the control's."""
    finetuning = recipe.finetuning
    others: dict[str, object] = {"distillation": finetuning.distillation.model_copy(update={"hidden": 0.0})}
    if finetuning.student_sources:
        others["data"] = [*sources_without_student(recipe).values()]
    return training_settings(recipe, finetuning.model_copy(update=others), teaching)


def student_data(recipe: Recipe, data: DataCache, own_data: str, test_data: Any) -> list[Any]:
    """What decides the prompts that the student answers, and how long its answers are; nothing where it writes none."""
    finetuning, written = recipe.finetuning, recipe.finetuning.student_sources
    if not written:
        return []
    sources = [[source.model_dump(exclude={"rounds"}), data.source_fingerprint(source, recipe.task)] for source in written]
    settings = [finetuning.max_length, finetuning.examples, recipe.seed, recipe.evaluation.max_new_tokens, recipe.model.dtype]
    return [[own_data, sources, test_data, *settings]]


def student_fingerprints(
    recipe: Recipe, start: str, training: list[Any], asking: list[Any], written: list[Any]
) -> list[StudentFingerprints]:
    """`start`: of the model before recovery; every later training starts from what the one before has left. `asking`: how the
    teacher is asked, beside what about."""
    found: list[StudentFingerprints] = []
    for number in range(1, recipe.finetuning.student_rounds + 1):
        answers = fingerprint_of("student", number, start, written)
        teacher = fingerprint_of(answers, *asking)
        start = fingerprint_of(start, *training, number)
        found.append(StudentFingerprints(answers, teacher, start))
    return found


def sources_identity(recipe: Recipe, sources: Sequence[SourceRecipe], data: DataCache) -> list[Any]:
    """What the recipe says of each source, and what its file holds (or its name on the hub)."""
    return [[source.model_dump(), data.source_fingerprint(source, recipe.task)] for source in sources]


def _selecting(recipe: Recipe) -> list[Any]:
    """What decides the answers by which a training's checkpoint is selected."""
    if recipe.finetuning.select_by != "dev_accuracy":
        return []
    return [recipe.evaluation.max_new_tokens, *own_scorer_identity(recipe.task)]


def own_scorer_identity(recipe: TaskRecipe) -> list[Any]:
    """The content of the file of the user's own scorer; nothing for the toolkit's scorers."""
    return [*function_identity(recipe.scorer if recipe.scorer and ":" in recipe.scorer else None)]
