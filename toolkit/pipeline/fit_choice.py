"""From a recipe with `pruning.fit` to the recipe that says the numbers itself: those of fit.json where it answers this recipe,
and until then those of the largest shape within the limits."""

from collections.abc import Sequence

from toolkit.cuts.fit_result import FitResult, FitShape
from toolkit.pipeline.fit_space import FitSpace
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of
from toolkit.runtime.run_paths import RunPaths


def request_of(recipe: Recipe) -> str:
    """Identifies what decides a fit, as far as the recipe says it."""
    sections = {"model": {"placement"}, "task": None, "calibration": None, "pruning": {"skipping"}, "finetuning": None}
    return fingerprint_of(recipe.seed, *(getattr(recipe, name).model_dump(exclude=left) for name, left in sections.items()))


def chosen_recipe(recipe: Recipe, run: RunPaths) -> Recipe | None:
    """The recipe of the chosen shape; None where nothing has been chosen for this recipe yet."""
    try:
        result = FitResult.load(run.fit_result)
    except PollardError:
        return None
    if result.chosen is None or result.request != request_of(recipe):
        return None
    shape = result.choice.shape
    return recipe_of_shape(recipe, shape, result.original.shape, result.kept_layers[shape.layers])


def provisional_recipe(recipe: Recipe, space: FitSpace) -> Recipe:
    """That of the largest shape within the limits. Raises PollardError where there is none."""
    shape = space.largest.shape
    return recipe_of_shape(recipe, shape, space.original, space.by_position[shape.layers])


def recipe_of_shape(recipe: Recipe, shape: FitShape, original: FitShape, layers: Sequence[int]) -> Recipe:
    """An ordinary recipe, without a fit, that leaves this shape. `layers`: those that stay."""
    pruning = recipe.pruning
    assert pruning.fit, "the recipe says its shape"
    experts_per_token = None if shape.experts_per_token == min(original.experts_per_token, shape.experts) else shape[3]
    chosen = {
        "fit": None,
        "keep": None if shape.experts == original.experts else shape.experts,
        "width": None if shape.width == original.width else shape.width,
        "layers": None if shape.layers == original.layers else list(layers),
        "layer_criterion": PruningRecipe.model_fields["layer_criterion"].default,  # the layers are listed
        "experts_per_token": experts_per_token,
        "form": shape.form,
        "refit": pruning.refit or pruning.fit.refit,
    }
    if chosen["keep"] is chosen["width"] is chosen["layers"] is None:  # fewer active experts, or the dense form, of all of them
        chosen["keep"] = shape.experts
    return recipe.model_copy(update={"pruning": pruning.model_copy(update=chosen)})
