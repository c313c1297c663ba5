"""The source on the dev slice, or on the calibration examples -> layers.json: which decoder layers stay.

Only where `pruning.layers` is set. It comes before calibration: experts and channels are observed in the model as its layers
will be.
"""

import time
from dataclasses import dataclass, replace

from toolkit.estimate import Machine, StageEstimate, repeated
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.layer_choice import ChosenLayers
from toolkit.pipeline.layer_search import LayerSearch, is_generative
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine, dev_examples
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import LAYERS
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.formatting import loss, ranges


@dataclass(frozen=True)
class LayerFacts(Facts):
    layers: int
    kept: int
    written_answers: bool  # the task's answers are written, not chosen


class Layers(Stage):
    kind = LAYERS
    batch_section = "calibration"
    sections = DECIDING[Role.PRUNED]
    output = "layers.json"
    resumes = ("layers",)
    last_screen = Shown(5, "which layers stay")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = round_names(context.recipe)[-1:]

    def is_asked_for(self) -> bool:
        return self.context.cuts.layers is not None

    def purpose(self) -> str:
        search = LayerSearch(self.context)
        if isinstance(search.wanted, list):
            return "keep the layers that the recipe lists"
        return f"choose the layers to keep ({search.wanted}, {search.criterion})"

    def fingerprint(self) -> str:
        layers = self.context.fingerprints.layers
        assert layers is not None, "the recipe keeps all layers"
        return layers.choice

    def outlook(self) -> str:
        search = LayerSearch(self.context)
        if search.needs == "similarities":
            return observation_outlook(self.context)
        if search.needs == "nothing":
            return "nothing is measured"
        most = self.context.recipe.calibration.examples
        return f"the loss on {dev_examples(self.context, most) or 'all'} dev examples, up to {search.measurements:,} times"

    def estimate(self, machine: Machine) -> StageEstimate:
        search, sizes = LayerSearch(self.context), RecipeOnMachine(self.context, machine)
        if search.needs == "nothing":
            return StageEstimate(self.name, "nothing is measured", seconds=0.0)
        if search.needs == "similarities":
            return sizes.observation(self.name, sizes.observed())
        times, dev = search.measurements, sizes.dev(self.context.recipe.calibration.examples)
        once = repeated(sizes.loss(self.name, sizes.observed(), dev), times)
        return replace(once, work=f"up to {times:,} times {dev.examples or 'all'} dev examples")

    def run(self) -> LayerFacts:
        started = time.monotonic()
        chosen = LayerSearch(self.context).run()
        chosen.seconds = round(time.monotonic() - started, 1)
        on_main(lambda: chosen.save(self.context.directory.layers))
        for line in lines_about(chosen):
            say(f"  {line}")
        written = is_generative(self.context.task)
        if written:
            say(f"  [bold]note[/] {caution(chosen)}")
        return LayerFacts(chosen.layers, len(chosen.kept), written)


def lines_about(chosen: ChosenLayers) -> list[str]:
    """What was chosen, for people."""
    by = "as the recipe lists them" if chosen.criterion == "given" else f"by {chosen.criterion}"
    lines = [f"{chosen.layers} -> {len(chosen.kept)} layers, {by}: {ranges(chosen.kept)}"]
    if chosen.loss is not None:
        lines.append(f"dev loss {loss(chosen.loss)} -> {loss(chosen.loss_after)} on {chosen.dev_examples:,} examples")
    return [*lines, *(f"layer {layer} stays: {reason}" for layer, reason in chosen.refused.items())]


def caution(chosen: ChosenLayers) -> str:
    """What fewer layers mean for a task whose answers are written."""
    text = "fewer layers cost a task whose answers are written more than one that chooses a label (docs/pruning.md)"
    if answers := chosen.dev_answers:
        return f"{text}: {answers.after} of {answers.n} dev questions are right before recovery, with all layers {answers.before}"
    return f"{text}; the dev slice was not asked (layer_criterion: dev_loss asks it)"
