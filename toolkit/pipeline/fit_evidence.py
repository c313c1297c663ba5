"""What a fit knows of a model beside its sizes: how its experts and channels are used, and in which order its layers go.

Both are measured once, in runs of their own, and serve every limit:

    fit/calibration/      the whole model, observed
    fit/layers/           its layers, dropped one after the other
"""

from functools import cached_property

from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_plans import ShapePlans, nested_layers
from toolkit.pipeline.fit_space import FitSpace
from toolkit.pipeline.layer_choice import ChosenLayers
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import CALIBRATE, LAYERS
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import on_main


class FitEvidence:
    """Of one run's fit."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.recipe, self.space = context, context.asked, context.fit_space
        self.calibration = RunDirectory("calibration", context.directory.fit)
        self.layers = RunDirectory("layers", context.directory.fit)

    def observe(self) -> None:
        """On every rank; what has been observed already is not observed again."""
        context = self.context
        assert context.run_stages, "what a fit observes is run by what runs stages"
        on_main(lambda: context.directory.fit.mkdir(exist_ok=True))
        parts = [(self.calibration, calibration_recipe(self.recipe, self.space), CALIBRATE)]
        if self._may_drop_layers:
            parts.append((self.layers, layers_recipe(self.recipe, self.space), LAYERS))
        for directory, recipe, until in parts:
            context.run_stages(context.variant(recipe, directory, context.fingerprints.teaching), until)

    @property
    def _may_drop_layers(self) -> bool:
        return len(self.space.values.layers) > 1

    @cached_property
    def plans(self) -> ShapePlans:
        """Raises PollardError where nothing has been observed."""
        removed = ChosenLayers.load(self.layers.layers).removed if self._may_drop_layers else []
        original = self.space.original
        layers = nested_layers(original.layers, [each.layer for each in removed])
        statistics = ExpertStatistics.load(self.calibration.statistics)
        return ShapePlans(self.context.meta_model, statistics, layers, original, self.recipe.pruning, self.recipe.seed)


def calibration_recipe(recipe: Recipe, space: FitSpace) -> Recipe:
    """A run of its own that observes the whole model, its channels where they may be cut."""
    original = space.original
    width = original.width // 2 if len(space.values.width) > 1 else None
    return _of_its_own(recipe, keep=original.experts, width=width, width_multiple=None if width is None else 1)


def layers_recipe(recipe: Recipe, space: FitSpace) -> Recipe:
    """A run of its own that drops as many layers as may go."""
    return _of_its_own(recipe, keep=None, layers=space.values.layers[0], width_multiple=None)


def _of_its_own(recipe: Recipe, **changes: int | None) -> Recipe:
    pruning = recipe.pruning.model_copy(update={"fit": None, "skipping": None, "refit": False, **changes})
    evaluation = recipe.evaluation.model_copy(
        update={"models": ["pruned"], "split": "dev", "fidelity": None, "off_task": None, "harness": None}
    )
    return recipe.model_copy(update={"pruning": pruning, "evaluation": evaluation, "control": False})
