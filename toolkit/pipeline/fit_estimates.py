"""Parts of what a fit takes: shapes that are asked the dev questions, and the runs of their own in which they are written."""

from collections.abc import Mapping
from dataclasses import replace

from toolkit.estimate import ModelSize, StageEstimate, repeated
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.recipe.finetuning import FinetuningRecipe
from toolkit.recipe.fit import FitRecipe


def dev_questions(sizes: RecipeOnMachine, model: ModelSize, fit: FitRecipe, passes: int = 1) -> list[StageEstimate]:
    """The loss of a model on the dev slice, in so many passes, and its answers."""
    dev = sizes.dev(fit.examples)
    prompts = replace(sizes.context.data_sizes.evaluation, examples=dev.examples)
    return [repeated(sizes.loss("", model, dev), passes), sizes.generation("", model, prompts, whole=True)]


def trial_of_largest(context: RunContext, pruning: Mapping[str, object], finetuning: FinetuningRecipe) -> RunContext:
    """The run that writes the shape that the context's recipe says (until the choice, the largest), with other settings."""
    recipe = context.recipe
    changed = recipe.pruning.model_copy(update=dict(pruning))
    return context.variant(recipe.model_copy(update={"pruning": changed, "finetuning": finetuning, "control": False}))
