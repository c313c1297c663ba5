"""The whole model, observed once, and masked in one way at a time -> fit.json: what each kind of cut costs alone, and what the
sum of these says of every shape."""

from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from toolkit.cuts.fit_result import FitShape
from toolkit.estimate import Machine, StageEstimate, combined_estimate
from toolkit.moe import StreamedModel
from toolkit.moe.placement import with_layers
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_axes import axes_of, axis_shapes
from toolkit.pipeline.fit_evidence import FitEvidence, calibration_recipe, layers_recipe
from toolkit.pipeline.fit_losses import PlanLosses
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import FIT_SCORES, FIT_SHAPES
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.fit import FitStage
from toolkit.pipeline.stages.fit_shapes import record_of
from toolkit.pipeline.stages.layers import Layers
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say
from toolkit.runtime.formatting import loss
from toolkit.selection.fit import Deltas


@dataclass(frozen=True)
class ScoresFacts(Facts):
    shapes: int
    passes: int  # over the dev examples


class FitScores(FitStage):
    kind = FIT_SCORES
    batch_section = "calibration"
    resumes = ("fit",)
    inside = FIT_SHAPES

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (FIT_SHAPES,)

    def purpose(self) -> str:
        return f"what does each of {', '.join(cut for cut in self.fit.cuts if cut != 'dense')} cost alone?"

    @property
    def passes(self) -> int:
        """Over the dev examples: of the original, and of every shape that cuts one thing only."""
        values = self.context.fit_space.values
        return 1 + sum(len(found) for found in axis_shapes(values, values.layers).values())

    def outlook(self) -> str:
        return f"one calibration, the order of layers, and {self.passes} passes over {self.fit.examples:,} dev examples"

    def parts(self, machine: Machine) -> dict[str, StageEstimate]:
        """By what is done: "calibration", "layers" where they may go, "axes"."""
        context, space, asked = self.context, self.context.fit_space, self.context.asked
        parts = {"calibration": Calibrate(context.variant(calibration_recipe(asked, space))).estimate(machine)}
        if len(space.values.layers) > 1:
            parts["layers"] = Layers(context.variant(layers_recipe(asked, space))).estimate(machine)
        sizes = RecipeOnMachine(context, machine)
        return parts | {"axes": sizes.masked_losses(self.name, sizes.dev(self.fit.examples), self.passes)}

    def estimate(self, machine: Machine) -> StageEstimate:
        parts = self.parts(machine)
        return combined_estimate(self.name, "; ".join(f"{what}: {part.work}" for what, part in parts.items()), [*parts.values()])

    def relief(self, machine: Machine) -> Relief:
        return replace(super().relief(machine), placements=())  # one layer at a time wherever the model lies

    def run(self) -> ScoresFacts:
        evidence = FitEvidence(self.context)
        evidence.observe()
        probe = ShapeMeasurements(evidence, self.fingerprints.asked).probe
        losses = PlanLosses(self.context.directory.fit / "losses.json", self.fingerprints.asked + str(self.fit.examples))
        kept_layers, space = evidence.plans.kept_layers, evidence.space
        by_axis = axis_shapes(space.values, list(kept_layers))
        shapes = [None, *(shape for found in by_axis.values() for shape in found)]
        plans = {shape: shape and evidence.plans.plan(shape) for shape in shapes}

        def measure(model: PreTrainedModel | StreamedModel) -> None:
            losses.measure(model, {_name(shape, space.original): plan for shape, plan in plans.items()}, probe.batches)

        if missing := losses.missing(list(plans.values())):
            say(f"  {len(missing)} of {len(plans)} losses are measured")
            source = self.context.source
            why_whole = "routers are masked, which are whole then"
            with_layers(self.context.asked, source.path, source.revision, measure, why_whole=why_whole)
        axes = axes_of(by_axis, space.original, lambda shape: losses.get(plans[shape]))
        deltas, result = Deltas.of(axes), self.load()
        candidates = space.candidates(kept_layers)
        records = [record_of(candidate) for candidate in [*candidates, *space.left_out(candidates, kept_layers)]]
        for record in records:
            predicted = deltas.predicted(record.shape)
            record.predicted = predicted if predicted < float("inf") else None
        for axis in axes:
            steps = ", ".join(f"{point.value} {loss(point.delta)}" for point in axis.points)
            say(f"  {axis.cut}: {steps}")
        kept = {number: list(layers) for number, layers in kept_layers.items()}
        update = {"fingerprint": self.fingerprint(), "axes": axes, "shapes": records, "kept_layers": kept, "chosen": None}
        self.save(result.model_copy(update=update))
        return ScoresFacts(len(candidates), len(plans))


def _name(shape: FitShape | None, original: FitShape) -> str:
    """ "6 experts": what of the original is changed."""
    if shape is None:
        return "original"
    changed = next(key for key in shape._fields if getattr(shape, key) != getattr(original, key))
    words = {"width": "channels", "experts_per_token": "active experts"}
    return f"{getattr(shape, changed)} {words.get(changed, changed)}"
