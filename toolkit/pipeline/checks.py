"""What can be known to be wrong before the first stage starts: all of it is told at once.

    model ─► numbers of experts                    data ─► examples            packages
      └─► tokenizer ─┬───────────────────────────────┘ └─► training sources    settings of the trainer
                     └─► rendering ─► context length, vocabulary

A check whose ground another one has found missing is left out: its message would only repeat that one.
"""

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.cuts import check_dense, plan_of_shape, shaped_meta_model
from toolkit.evaluation.harness import check_harness
from toolkit.evaluation.off_task import read_off_task
from toolkit.evaluation.probe import check_probe
from toolkit.moe import check_some_inactive
from toolkit.pipeline.budget import Budget, check_shrinking
from toolkit.pipeline.calibration_data import check_self_generated, check_source, read_source, sources_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.data_checks import limit_checks, rendering_checks
from toolkit.pipeline.growth_checks import check_growth, growth_notes
from toolkit.pipeline.layer_search import check_dev_slice
from toolkit.pipeline.rounds import early_rounds, trains
from toolkit.pipeline.stages.refit import check_refit
from toolkit.pipeline.stages.skip import check_skipping
from toolkit.pipeline.stages.teacher import check_seams
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import check_training_source, training_sources
from toolkit.runtime.errors import Mistakes, PollardError
from toolkit.tasks import Split, repeated_questions


def check(context: RunContext, mistakes: Mistakes | None = None, variants: Sequence[RunContext] = ()) -> list[str]:
    """Makes every check that does not depend on another one's failure, and raises one PollardError with all that is wrong,
    `mistakes` that the caller knows of first. Returns what is no mistake and should be known, a sentence each.

    `variants`: of the same run, but for their pruning, which is checked as well.
    """
    mistakes = mistakes or Mistakes()
    try:
        notes = _checked(context, mistakes, variants)
    except Exception:
        mistakes.raise_all()  # a bug that comes of them is not what the user should read
        raise
    mistakes.raise_all()
    return notes


def _checked(context: RunContext, mistakes: Mistakes, variants: Sequence[RunContext]) -> list[str]:
    recipe = context.recipe
    config = mistakes.collect(lambda: context.config)
    tokenizer = mistakes.collect(lambda: context.tokenizer) if config is not None else None
    if config is not None:
        for each in (context, *variants):
            _check_numbers(each, mistakes)
            mistakes.collect(partial(check_refit, each))
            mistakes.collect(partial(check_growth, each))
    mistakes.collect(lambda: _check_dtype(recipe))
    readable = [_is_readable(context, split, mistakes) for split in ("train", recipe.evaluation.split)]
    for source in recipe.calibration.data or ():
        mistakes.collect(partial(check_source, source, context.data))
    mistakes.collect(lambda: check_self_generated(recipe))
    if config is not None and all(readable):
        for each in (context, *variants):
            mistakes.collect(partial(check_dev_slice, each))
    _check_packages(recipe, mistakes)
    notes = _check_off_task(context, tokenizer, mistakes)
    notes += mistakes.collect(lambda: growth_notes(context)) or []
    if tokenizer is not None and all(readable):
        rendered = [mistakes.collect(check_part) for check_part in rendering_checks(context)]
        notes += [note for found in rendered for note in found or ()]
        tokenizer = None if None in rendered else tokenizer
        if tokenizer is not None and not recipe.calibration.self_generated:
            for source in (source for source in sources_of(recipe) if source.task):
                mistakes.collect(partial(read_source, source, recipe, tokenizer, context.data))  # none may be short enough
    if all(readable) and trains(recipe) and recipe.finetuning.data is None:  # a mix leaves them out
        notes += _repetitions(context)
    if trains(recipe):
        if config is not None:
            mistakes.collect(partial(check_seams, context))
        _check_training(context, tokenizer, mistakes)
    if tokenizer is not None and all(readable):
        for check_part in limit_checks(context):
            notes += mistakes.collect(check_part) or []
    return notes


def _check_numbers(context: RunContext, mistakes: Mistakes) -> None:
    """What stays after every round, and whether there is something to skip."""
    pruning = context.recipe.pruning
    of_steps = [*(pruning.of_step(step) for step in early_rounds(context.recipe)), pruning]
    budgets = [mistakes.collect(partial(_possible_budget, context, of_step)) for of_step in of_steps]
    if None not in budgets:
        mistakes.collect(lambda: check_shrinking([budget for budget in budgets if budget]))
    mistakes.collect(lambda: check_skipping(context.recipe, context.budget.experts_per_token))


def _possible_budget(context: RunContext, pruning: PruningRecipe) -> Budget:
    """Raises PollardError where the model cannot be cut so, or would be none any more."""
    budget = context.budget_of(pruning)
    if budget.width or budget.layers:
        shaped_meta_model(context.config, budget.shape)  # made by the cuts, which say what they cannot do
    if pruning.form == "dense":
        check_dense(context.config, plan_of_shape(context.meta_model, budget.shape))
    return budget


def _check_router_gradient(context: RunContext) -> None:
    """What a fit keeps is not known yet: then training says it."""
    pruning = context.recipe.pruning
    if context.recipe.finetuning.router_gradient == "all" and pruning.fit is None and pruning.form != "dense":
        check_some_inactive(context.budget.keep, context.budget.experts_per_token)


def _check_dtype(recipe: Recipe) -> None:
    if recipe.model.dtype in ("bfloat16", "float16") and not torch.cuda.is_available():
        raise PollardError(
            f"model.dtype is {recipe.model.dtype}, but this machine has no GPU: say model.dtype=float32 (or auto).",
            code="machine.no-gpu",
        )


def _is_readable(context: RunContext, split: Split, mistakes: Mistakes) -> bool:
    return mistakes.collect(lambda: context.task.examples(split)) is not None


def _repetitions(context: RunContext) -> list[str]:
    """Training on what is asked afterwards is told before, not by a score that is too good."""
    repeated, number = repeated_questions(context.task, split := context.recipe.evaluation.split)
    if not repeated:
        return []
    return [
        f"{repeated:,} of {number:,} training questions of {context.task.name} are questions of {split}, too, word for word: "
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


def _check_off_task(context: RunContext, tokenizer: PreTrainedTokenizerBase | None, mistakes: Mistakes) -> list[str]:
    """The data that models are measured on beside their task."""
    evaluation = context.recipe.evaluation
    if data := evaluation.measured_off_task:
        if tokenizer is None:
            mistakes.collect(partial(check_probe, data.source, context.data))
        else:
            mistakes.collect(partial(read_off_task, data, context.recipe, tokenizer, context.data))
        return []
    if not evaluation.off_task:
        return []
    return [
        "What the models lost beside their task is not measured: servers return no probabilities. With data in "
        "evaluation.off_task the models are loaded here for it; false leaves this line out."
    ]


def _check_training(context: RunContext, tokenizer: PreTrainedTokenizerBase | None, mistakes: Mistakes) -> None:
    """`tokenizer`: None where the rendering is wrong already, so that lengths would say nothing."""
    from toolkit.recovery.settings import finetuning_checks  # takes seconds; a run that is done needs none of it

    for source in training_sources(context.recipe):
        mistakes.collect(partial(check_training_source, context.recipe, source, tokenizer, context.data))
    mistakes.collect(lambda: _check_router_gradient(context))
    for check_part in finetuning_checks(context.recipe, context.directory.checkpoints, context.data):
        mistakes.collect(check_part)
