"""What decides each stage's result, as fingerprints: where one changes, its stage and those after it are done again.

What of a task decides how its answers are judged, for fingerprints: what its scorer does, where that is the user's own
file, and the examples that stand before every question, which come from train.
"""

from dataclasses import dataclass
from typing import Any

from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.stages import core, teach
from toolkit.pipeline.stages import fidelity_harness as beside
from toolkit.pipeline.stages.calibration_data import identity_of_data
from toolkit.pipeline.stages.skip import role_that_skips
from toolkit.pipeline.stages.teach import Taught
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.files import fingerprint_of, fingerprint_of_source
from toolkit.tasks import Task
from toolkit.tasks.scorers import scorer_file


@dataclass(frozen=True)
class Fingerprints:
    """One per stage; `models` are those of the evaluated models, which with `judged` decide their scores."""

    taught: Taught
    rounds: dict[int, str]  # by the number of experts that a round before the last keeps
    calibrate: str
    select: str
    models: dict[str, str]
    judged: str
    said: str  # fidelity: what the original says
    asked: str  # the harness's tasks
    skip: str

    def scores_of(self, role: str) -> str:
        return fingerprint_of(self.models[role], self.judged)


def fingerprints_of(recipe: Recipe, taught: Taught | None) -> Fingerprints:
    """`taught`: what an outer run has made already for this one's training. Raises PollardError for sources that are not
    there, and where the model's routers cannot do what the recipe asks."""
    task, settings = Task(recipe.task), recipe.task.model_dump()
    model = fingerprint_of(fingerprint_of_source(recipe.model.path), recipe.model.model_dump(exclude={"placement"}))
    data = {split: task.fingerprint(split) for split in task.sources()}
    split = data["train" if recipe.evaluation.split == "dev" else "test"]
    evaluation = [recipe.evaluation.fingerprint_values(), *([recipe.seed] if recipe.evaluation.temperature else [])]
    taught = taught or teach.fingerprints(recipe, model, fingerprint_of(settings, data["train"]), data["test"])
    watching, choosing = _watching(recipe), recipe.pruning.model_dump(exclude={"schedule", "skipping"})
    training = [taught, recipe.finetuning.model_dump(), recipe.seed, recipe.model.dtype, *_answering(recipe)]
    rounds, watched_model = {}, model  # of the last round; without a schedule it is the only one
    for fewer in early_rounds(recipe):
        watched_model = fingerprint_of(watched_model, watching, choosing | {"keep": fewer}, training)
        rounds[fewer] = watched_model
    calibrate = fingerprint_of(watched_model, *watching)
    select = fingerprint_of(calibrate, choosing, recipe.seed)
    prune = fingerprint_of(select)
    recover, control = fingerprint_of(prune, *training), fingerprint_of(model, *training)
    models = {"original": model, "pruned": prune, "recovered": recover, "control": control}
    watched_once_more = [identity_of_data(recipe), recipe.calibration.model_dump(), recipe.seed, recipe.pruning.skipping]
    return Fingerprints(
        taught=taught,
        rounds=rounds,
        calibrate=calibrate,
        select=select,
        models=models,
        judged=fingerprint_of(settings, split, evaluation, recipe.model.dtype, *identity_of_scoring(task)),
        said=beside.fidelity_fingerprint(recipe, model, split),
        asked=beside.harness_fingerprint(recipe),
        skip=fingerprint_of(models[role_that_skips(recipe)], watched_once_more),
    )


def _watching(recipe: Recipe) -> list[Any]:
    budget = core.budget(recipe)
    # Criteria score what the pruned model will do: with fewer experts per token, calibration is another one
    routing = [budget.experts_per_token] if budget.fewer_active else []
    # The reconstruction search needs the experts' outputs, so it is part of calibration where the criterion asks for it
    how = [*routing, *core.search_of(recipe)]
    return [identity_of_data(recipe), recipe.calibration.model_dump(), recipe.seed, *how]


def _answering(recipe: Recipe) -> list[Any]:
    """What decides the answers by which a checkpoint is selected."""
    if recipe.finetuning.select_by != "dev_accuracy":
        return []
    return [recipe.evaluation.max_new_tokens, *own_scorer_identity(recipe.task)]


# Of the rules by which answers are taken out of what was written, and judged: with others a finished evaluation is done again
RULES = 2


def own_scorer_identity(recipe: TaskRecipe) -> list[Any]:
    """The content of the user's own scorer's file; nothing for the toolkit's own."""
    own = recipe.scorer if recipe.scorer and ":" in recipe.scorer else None
    return [fingerprint_of_source(scorer_file(own) or own)] if own else []


def identity_of_scoring(task: Task) -> list[Any]:
    """Beside the task's own keys and the split that is asked."""
    shots = [task.fingerprint("train")] if task.preset.shots else []
    return [RULES, *own_scorer_identity(task.recipe), *shots]
