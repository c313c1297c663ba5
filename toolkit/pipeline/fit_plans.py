"""From a shape to what stays: one calibration of the whole model, and one order in which its layers go, serve every shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from toolkit.cuts import ExpertsCut, LayersCut, Plan, WidthCut
from toolkit.cuts.cut import Cut
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.recipe.pruning import PruningRecipe
from toolkit.selection import select


@dataclass(frozen=True)
class ShapePlans:
    """Plans of one model's shapes. `model` may be without weights."""

    model: PreTrainedModel
    statistics: ExpertStatistics
    kept_layers: Mapping[int, Sequence[int]]
    """By how many layers stay, which: nested."""
    original: FitShape
    pruning: PruningRecipe
    """Its criteria, and the tokens whose statistics count."""
    seed: int = 0

    def plan(self, shape: FitShape) -> Plan:
        """What of the original stays in that shape, as a mixture of experts."""
        pruning = self.pruning
        width = None if shape.width == self.original.width else shape.width
        plan = select(
            self.statistics, pruning.criterion, shape.experts, pruning.tokens, pruning.mode, self.seed, shape.experts_per_token,
            width, pruning.width_criterion, width_multiple=1,
        )  # fmt: skip
        if shape.layers == self.original.layers:
            return plan
        layers = LayersCut.of(self.model, self.kept_layers[shape.layers], pruning.layer_criterion)
        return with_layers_dropped(plan, layers)


def nested_layers(total: int, removed: Sequence[int]) -> dict[int, list[int]]:
    """By how many layers stay, which: those in `removed` go one after the other."""
    kept = list(range(total))
    found = {total: kept}
    for layer in removed:
        kept = [other for other in kept if other != layer]
        found[len(kept)] = kept
    return found


def with_layers_dropped(plan: Plan, layers: LayersCut) -> Plan:
    """The plan without what it says of layers that go."""

    def stays(name: str) -> bool:
        return layers.rename(name, name) is not None

    cuts: list[Cut] = [layers]
    for cut in plan.cuts:
        if isinstance(cut, ExpertsCut):
            settings = {"criterion": cut.criterion, "mode": cut.mode, "tokens": cut.tokens, "keep": cut.keep}
            cuts.append(ExpertsCut.of({name: block for name, block in cut.blocks.items() if stays(name)}, **settings))
        if isinstance(cut, WidthCut):
            channels = {name: kept for name, kept in cut.channels.items() if stays(name)}
            cuts.append(WidthCut(criterion=cut.criterion, keep=cut.keep, channels=channels))
    return plan.model_copy(update={"cuts": cuts})
