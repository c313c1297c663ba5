"""What can be known to be wrong before the first stage starts: all of it is told at once.

    model ─► numbers of experts                    data ─► examples            packages
      └─► tokenizer ─┬───────────────────────────────┘ └─► training sources    settings of the trainer
                     └─► rendering ─► context length, vocabulary

A check whose ground another one has found missing is left out: its message would only repeat that one.
"""

from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.harness import check_harness
from toolkit.moe import load_config, load_tokenizer
from toolkit.pipeline.data_checks import limit_checks, rendering_checks, trains
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stages import core
from toolkit.pipeline.stages.calibration_data import check_self_generated, check_source, read_source, sources_of
from toolkit.pipeline.stages.skip import check_skipping
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import check_training_source, training_sources
from toolkit.runtime.errors import Mistakes, PollardError
from toolkit.tasks import Split, Task, repeated_questions


def check(recipe: Recipe, directory: RunDirectory | None = None, mistakes: Mistakes | None = None) -> list[str]:
    """Makes every check that does not depend on another one's failure, and raises one PollardError with all that is wrong,
    `mistakes` that the caller knows of first. Returns what is no mistake and should be known, a sentence each.

    `directory`: where the run will be; runs/<name> unless given.
    """
    mistakes, directory = mistakes or Mistakes(), directory or RunDirectory(recipe.name)
    try:
        notes = _checked(recipe, directory, mistakes)
    except Exception:
        mistakes.raise_all()  # a bug that comes of them is not what the user should read
        raise
    mistakes.raise_all()
    return notes


def _checked(recipe: Recipe, directory: RunDirectory, mistakes: Mistakes) -> list[str]:
    path, revision = recipe.model.path, recipe.model.revision
    config = mistakes.collect(lambda: load_config(path, revision))
    tokenizer = mistakes.collect(lambda: load_tokenizer(path, revision)) if config is not None else None
    if config is not None:
        for keep in (*early_rounds(recipe), recipe.pruning.keep):
            mistakes.collect(partial(core.budget, _keeping(recipe, keep)))
        mistakes.collect(lambda: check_skipping(recipe, core.budget(recipe).experts_per_token))
    mistakes.collect(lambda: _check_dtype(recipe))
    readable = [_check_split(recipe, split, mistakes) for split in ("train", recipe.evaluation.split)]
    for source in recipe.calibration.data or ():
        mistakes.collect(partial(check_source, source))
    mistakes.collect(lambda: check_self_generated(recipe))
    _check_packages(recipe, mistakes)
    notes: list[str] = []
    if tokenizer is not None and all(readable):
        rendered = [mistakes.collect(check_part) for check_part in rendering_checks(recipe, tokenizer)]
        notes += [note for found in rendered for note in found or ()]
        tokenizer = None if None in rendered else tokenizer
        if tokenizer is not None and not recipe.calibration.self_generated:
            for source in (source for source in sources_of(recipe) if source.task):
                mistakes.collect(partial(read_source, source, recipe, tokenizer))  # none may be short enough
    if all(readable) and trains(recipe) and recipe.finetuning.data is None:  # a mix leaves them out
        notes += _repetitions(recipe)
    if trains(recipe):
        _check_training(recipe, directory, tokenizer, mistakes)
    if tokenizer is not None and all(readable):
        for check_part in limit_checks(recipe, config, tokenizer):
            notes += mistakes.collect(check_part) or []
    return notes


def _keeping(recipe: Recipe, keep: int | float) -> Recipe:
    return recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"keep": keep})})


def _check_dtype(recipe: Recipe) -> None:
    if recipe.model.dtype in ("bfloat16", "float16") and not torch.cuda.is_available():
        raise PollardError(
            f"model.dtype is {recipe.model.dtype}, but this machine has no GPU: say model.dtype=float32 (or auto)."
        )


def _check_split(recipe: Recipe, split: Split, mistakes: Mistakes) -> bool:
    return mistakes.collect(lambda: Task(recipe.task).examples(split)) is not None


def _repetitions(recipe: Recipe) -> list[str]:
    """Training on what is asked afterwards is told before, not by a score that is too good."""
    repeated, number = repeated_questions(Task(recipe.task), split := recipe.evaluation.split)
    if not repeated:
        return []
    return [
        f"{repeated:,} of {number:,} training questions of {recipe.task.name} are questions of {split}, too, word for word: "
        "scores on these do not tell how well a model answers new ones."
    ]


def _check_packages(recipe: Recipe, mistakes: Mistakes) -> None:
    """What only some recipes need is installed, and knows what they ask of it."""
    settings = recipe.evaluation
    if settings.harness:
        mistakes.collect(lambda: check_harness(settings.harness or [], settings.harness_tasks))
    if settings.backend == "server":
        from toolkit.evaluation.server import check_client  # asks for a package that few need

        mistakes.collect(check_client)


def _check_training(
    recipe: Recipe, directory: RunDirectory, tokenizer: PreTrainedTokenizerBase | None, mistakes: Mistakes
) -> None:
    from toolkit.recovery.settings import finetuning_checks  # takes seconds; a run that is done needs none of it

    for source in training_sources(recipe):
        mistakes.collect(partial(check_training_source, recipe, source, tokenizer))
    for check_part in finetuning_checks(recipe, directory.checkpoints):
        mistakes.collect(check_part)
