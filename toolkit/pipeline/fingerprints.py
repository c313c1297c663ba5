"""What decides each stage's result, as fingerprints: where one changes, its stage and those after it are done again.

original ─► (rounds ─►) calibrate ─► select = pruned ─► (refitted ─►) recovered      each covers those before it
teaching, reference logits, harness, scoring                             cover the data and settings that measuring reads
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from toolkit.evaluation.fidelity import FORMAT
from toolkit.pipeline.budget import Budget
from toolkit.pipeline.calibration_data import refit_recipe, sources_of
from toolkit.pipeline.first_run import FirstRun
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.training_fingerprints import (
    StudentFingerprints,
    Teaching,
    own_scorer_identity,
    shared_training,
    sources_identity,
    student_data,
    student_fingerprints,
    teaching_of,
    training_settings,
)
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recipe.step import StepRecipe
from toolkit.recovery.training_data import training_sources
from toolkit.runtime.files import fingerprint_of, fingerprint_of_source
from toolkit.selection import CRITERIA, WIDTH_CRITERIA, SearchRequest
from toolkit.tasks import DataCache

SCORING_RULES = 2
"""The rules by which answers are taken out of what was written, and judged: under others a finished evaluation is done
again."""


NOT_CHOOSING = {"schedule", "skipping", "form", "fit"}
"""The keys of `pruning` that decide nothing of what a plan keeps, nor of a round before the last."""


class LayerFingerprints(NamedTuple):
    """Of the choice of layers, and of what is measured for it, which serves every number of layers."""

    choice: str
    losses: str
    similarities: str


@dataclass(frozen=True)
class Fingerprints:
    """Those that several stages share or build on."""

    teaching: Teaching
    student: list[StudentFingerprints]  # of every training on what the student writes, in order
    rounds: dict[StepRecipe, str]  # by what a round before the last keeps
    layers: LayerFingerprints | None  # None where all layers stay
    calibrate: str
    select: str
    merge: str
    models: dict[Role, str]  # of the models of a run that are checkpoints
    scoring: str  # the questions, how they are answered and judged; with a model's fingerprint it decides the score
    reference_logits: str  # fidelity: the original's distributions over the gold answers
    off_task: str | None  # the texts beside the task, and the original where models are compared with it; None: not measured
    harness: str  # the questions of lm-evaluation-harness
    skip: str

    def scores_of(self, role: Role) -> str:
        return fingerprint_of(self.models[role], self.scoring)


class FitFingerprints(NamedTuple):
    """Of the questions and losses by which shapes are compared, which serve any limits; of what is known of those within the
    limits without training; and of the choice."""

    asked: str
    measured: str
    choice: str


def fit_fingerprints(recipe: Recipe, data: DataCache) -> FitFingerprints:
    """`recipe`: as it was given, with limits. Raises PollardError for sources that are not there."""
    model = fingerprint_of(fingerprint_of_source(recipe.model.path), recipe.model.model_dump(exclude={"placement"}))
    settings, train = recipe.task.model_dump(), data.task_fingerprint(recipe.task, "train")
    pruning = recipe.pruning.model_dump(exclude={"skipping"})
    judging = [recipe.evaluation.max_new_tokens, *_scoring(recipe.task, data)]
    # What a mix holds, of which the recipe's keys say names only
    observed = [_calibration_data(recipe, data)] if recipe.calibration.data else []
    taught = [sources_identity(recipe, training_sources(recipe), data)] if recipe.finetuning.data else []
    asked = fingerprint_of("fit", model, settings, train, recipe.calibration.model_dump(), judging, *observed)
    measured = fingerprint_of(asked, *_examples_read(recipe, data), pruning)
    trains = Role.RECOVERED in recipe.evaluation.models
    return FitFingerprints(asked, measured, fingerprint_of(measured, recipe.finetuning.model_dump(), trains, *taught))


def fingerprints_of(
    recipe: Recipe,
    data: DataCache,
    budgets: Callable[[], tuple[Budget, Budget]],
    first_run: Callable[[], FirstRun | None],
    teaching: Teaching | None = None,
) -> Fingerprints:
    """`budgets`: what stays of the model in the end, and what the last round cuts. `first_run`: whose model grows. `teaching`:
    what the run around this one has made for this one's training. Raises PollardError for sources that are not there, and as
    `budgets` and `first_run` do."""
    task, settings = data.task(recipe.task), recipe.task.model_dump()
    model = fingerprint_of(fingerprint_of_source(recipe.model.path), recipe.model.model_dump(exclude={"placement"}))
    splits = {split: data.task_fingerprint(recipe.task, split) for split in task.sources()}
    split = splits["train" if recipe.evaluation.split == "dev" else "test"]
    own_data = fingerprint_of(settings, splits["train"])
    budget, cuts = budgets()
    observing = _observing(recipe, data, budget)
    seams = []
    if recipe.finetuning.distillation.hidden and cuts.layers is not None:
        # There are no rounds then: the layers are chosen before the teacher is asked, in the original
        seams = ["hidden", _layers(recipe, cuts.layers, model, observing, own_data).choice]
    teaching = teaching or teaching_of(recipe, data, model, own_data, splits["test"], seams)
    choosing = recipe.pruning.model_dump(exclude={*NOT_CHOOSING, "refit"})
    shared, written = shared_training(recipe, teaching), student_data(recipe, data, own_data, splits["test"])
    training = [*training_settings(recipe, recipe.finetuning, teaching), *written]
    rounds, source = {}, model  # the source of the last round; without a schedule it is the only one
    trainings = [recipe.finetuning.student_rounds] if recipe.finetuning.student_rounds > 1 else []  # each round does all of them
    for step in early_rounds(recipe):
        of_step = recipe.pruning.of_step(step).model_dump(exclude=NOT_CHOOSING)
        source = rounds[step] = fingerprint_of(source, observing, of_step, training, *trainings)
    layers = None if cuts.layers is None else _layers(recipe, cuts.layers, source, observing, own_data)
    calibrate = fingerprint_of(source, *observing, *([layers.choice] if layers else []), *_channels(recipe, cuts))
    growing = [first.identity] if (first := first_run()) else []
    select = fingerprint_of(calibrate, choosing, recipe.seed, *growing)
    merge = fingerprint_of(select, "dense")
    prune = fingerprint_of(merge if recipe.pruning.form == "dense" else select)
    refitted = fingerprint_of("refit", prune, *_examples_read(refit_recipe(recipe), data)) if recipe.pruning.refit else prune
    student = student_fingerprints(
        recipe, refitted, training, [teaching, recipe.finetuning.distillation.temperature, *seams], written
    )
    models = {
        Role.ORIGINAL: model,
        Role.PRUNED: prune,
        **({Role.REFITTED: refitted} if recipe.pruning.refit else {}),
        Role.RECOVERED: student[-1].model if student else fingerprint_of(refitted, *training),
        Role.CONTROL: fingerprint_of(model, *shared),
    }
    return Fingerprints(
        teaching=teaching,
        student=student,
        rounds=rounds,
        layers=layers,
        calibrate=calibrate,
        select=select,
        merge=merge,
        models=models,
        scoring=scoring_of(recipe, data),
        reference_logits=_reference_logits(recipe, model, [split, splits["train"]] if task.nearest else split),
        off_task=_off_task(recipe, data, model),
        harness=_harness(recipe),
        skip=fingerprint_of(models[last_role(recipe)], [*_examples_read(recipe, data), recipe.pruning.skipping]),
    )


def last_role(recipe: Recipe) -> Role:
    """The model that the run ends with."""
    return Role.RECOVERED if Role.RECOVERED in recipe.evaluation.models else role_before_recovery(recipe)


def role_before_recovery(recipe: Recipe) -> Role:
    """The model that fine-tuning starts from."""
    return Role.REFITTED if recipe.pruning.refit else Role.PRUNED


def subset_search(recipe: Recipe) -> SearchRequest | None:
    """The search that the recipe's criterion needs in calibration; None where it needs none, and where all experts stay."""
    pruning = recipe.pruning
    return None if pruning.keep is None else CRITERIA[pruning.criterion].search(pruning)


def observed_channels(recipe: Recipe, cuts: Budget) -> bool | Literal["gradients"]:
    """Whether calibration observes the channels of experts, too; in a backward pass where the criterion needs it."""
    if cuts.width is None:
        return False
    return "gradients" if WIDTH_CRITERIA[recipe.pruning.width_criterion].gradients else True


def _observing(recipe: Recipe, data: DataCache, budget: Budget) -> list[Any]:
    # Criteria score what the pruned model will do: with fewer experts per token, calibration is another one
    routing = [budget.experts_per_token] if budget.fewer_active else []
    search = subset_search(recipe)
    searching = search.identity if search else []
    return [*_examples_read(recipe, data), *routing, *searching]


def _layers(recipe: Recipe, wanted: int | tuple[int, ...], source: str, observing: list[Any], own_data: str) -> LayerFingerprints:
    """`own_data`: of the file that the dev slice is of."""
    criterion, tokens = recipe.pruning.layer_criterion, recipe.pruning.tokens
    batches = recipe.calibration.model_dump(include={"examples", "batch_size", "max_length"})
    return LayerFingerprints(
        choice=fingerprint_of("layers", source, observing, own_data, wanted, criterion, tokens),
        losses=fingerprint_of("layers' losses", source, own_data, batches),
        similarities=fingerprint_of("layers' similarities", source, observing),
    )


def _channels(recipe: Recipe, cuts: Budget) -> list[list[str]]:
    """How calibration observes channels, where it does; which criterion reads them is decided later."""
    found = observed_channels(recipe, cuts)
    return [["channels", *(["gradients"] if found == "gradients" else [])]] if found else []


def _examples_read(recipe: Recipe, data: DataCache) -> list[Any]:
    """What a pass over the calibration's examples reads."""
    return [_calibration_data(recipe, data), recipe.calibration.model_dump(), recipe.seed]


def _calibration_data(recipe: Recipe, data: DataCache) -> list[Any]:
    """What the sources hold, and what decides the model's own answers."""
    own = [recipe.evaluation.max_new_tokens, recipe.model.dtype] if recipe.calibration.self_generated else []
    return [sources_identity(recipe, sources_of(recipe), data), own]


def scoring_of(recipe: Recipe, data: DataCache) -> str:
    """The questions, how they are answered and judged. Raises PollardError for sources that are not there."""
    split = data.task_fingerprint(recipe.task, "train" if recipe.evaluation.split == "dev" else "test")
    evaluation = [recipe.evaluation.fingerprint_values(), *([recipe.seed] if recipe.evaluation.temperature else [])]
    return fingerprint_of(recipe.task.model_dump(), split, evaluation, recipe.model.dtype, *_scoring(recipe.task, data))


def _scoring(recipe: TaskRecipe, data: DataCache) -> list[Any]:
    """What decides how answers are judged, beside the task's own keys and the split that is asked."""
    task = data.task(recipe)
    shots = [data.task_fingerprint(recipe, "train")] if task.preset.shots or task.nearest else []
    return [SCORING_RULES, *own_scorer_identity(recipe), *shots]


def _reference_logits(recipe: Recipe, model: str, split: Any) -> str:
    """`split`: what identifies the file that the evaluated split is from, and those that its prompts are made of."""
    settings = recipe.evaluation.model_dump(include={"fidelity", "split"})
    batches = recipe.calibration.model_dump(include={"batch_size", "max_length"})
    return fingerprint_of(FORMAT, model, recipe.task.model_dump(), split, settings, batches, recipe.model.dtype)


def _off_task(recipe: Recipe, data: DataCache, model: str) -> str | None:
    texts = recipe.evaluation.measured_off_task
    if texts is None:
        return None
    original = model if Role.ORIGINAL in recipe.evaluation.models else None
    source = data.source_fingerprint(texts.source, recipe.task)
    batches = recipe.calibration.model_dump(include={"batch_size", "max_length"})
    read = [texts.name, texts.examples, source, *([texts.task.model_dump()] if texts.task else [])]
    return fingerprint_of("off task", FORMAT, original, read, batches, recipe.model.dtype)


def _harness(recipe: Recipe) -> str:
    settings = recipe.evaluation
    return fingerprint_of(
        settings.harness, settings.harness_tasks and fingerprint_of_source(settings.harness_tasks), recipe.model.dtype
    )
