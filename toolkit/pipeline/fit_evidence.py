"""What a fit knows of a model beside its sizes: how its experts and channels are used, and in which order its layers go.

Both are measured once, in runs of their own, and serve every limit:

    fit/calibration/      the whole model, observed
    fit/layers/           its layers, dropped one after the other
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from toolkit.cuts import ExpertsCut, LayersCut, Plan, WidthCut
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_space import FitSpace
from toolkit.pipeline.layer_choice import ChosenLayers
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import CALIBRATE, LAYERS
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import on_main
from toolkit.selection import select


class FitEvidence:
    """Of one run's fit; a plan for every shape."""

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
    def statistics(self) -> ExpertStatistics:
        return ExpertStatistics.load(self.calibration.statistics)

    @cached_property
    def kept_layers(self) -> Mapping[int, Sequence[int]]:
        """By how many layers stay, which: nested."""
        depth = self.space.original.layers
        kept, found = list(range(depth)), {depth: list(range(depth))}
        for removed in ChosenLayers.load(self.layers.layers).removed if self._may_drop_layers else ():
            kept = [layer for layer in kept if layer != removed.layer]
            found[len(kept)] = kept
        return found

    def plan(self, shape: FitShape) -> Plan:
        """What of the original stays in that shape, as a mixture of experts."""
        original, pruning = self.space.original, self.recipe.pruning
        plan = select(
            self.statistics, pruning.criterion, shape.experts, pruning.tokens, pruning.mode, self.recipe.seed,
            shape.experts_per_token, None if shape.width == original.width else shape.width, pruning.width_criterion,
            width_multiple=1,
        )  # fmt: skip
        if shape.layers == original.layers:
            return plan
        layers = LayersCut.of(self.context.meta_model, self.kept_layers[shape.layers], pruning.layer_criterion)
        return with_layers_dropped(plan, layers)


def with_layers_dropped(plan: Plan, layers: LayersCut) -> Plan:
    """The plan without what it says of layers that go."""
    stays = {name for name in plan.blocks if layers.rename(name, name) is not None}
    dropped = plan.with_experts({name: block for name, block in plan.blocks.items() if name in stays})
    if width := dropped.cut(WidthCut):
        channels = {name: kept for name, kept in width.channels.items() if layers.rename(name, name) is not None}
        narrower = WidthCut(criterion=width.criterion, keep=width.keep, channels=channels)
        dropped = dropped.model_copy(update={"cuts": [cut for cut in dropped.cuts if isinstance(cut, ExpertsCut)] + [narrower]})
    return dropped.model_copy(update={"cuts": [*dropped.cuts, layers]})


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
    evaluation = recipe.evaluation.model_copy(update={"models": ["pruned"], "split": "dev", "fidelity": None, "harness": None})
    return recipe.model_copy(update={"pruning": pruning, "evaluation": evaluation, "control": False})
