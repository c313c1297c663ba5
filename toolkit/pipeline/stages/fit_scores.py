"""The whole model, observed once, and masked in one way at a time -> fit.json: what each kind of cut costs alone, and what the
sum of these says of every shape."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from toolkit.moe import StreamedModel
from toolkit.moe.placement import with_layers
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_axes import axes_of, axis_shapes
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_losses import PlanLosses
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import FIT_SCORES, FIT_SHAPES
from toolkit.pipeline.stages.fit import FitStage
from toolkit.pipeline.stages.fit_shapes import record_of
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

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (FIT_SHAPES,)

    def purpose(self) -> str:
        return f"what does each of {', '.join(self.fit.cuts)} cost alone?"

    def outlook(self) -> str:
        values = self.context.fit_space.values
        shapes = axis_shapes(values, values.layers)
        alone = sum(len(found) for found in shapes.values())
        return f"one calibration, the order of layers, and {1 + alone} passes over {self.fit.examples:,} dev examples"

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
            losses.measure(model, list(plans.values()), probe.batches)

        if missing := losses.missing(list(plans.values())):
            say(f"  {len(missing)} of {len(plans)} losses are measured")
            source = self.context.source
            why_whole = "routers are masked, which are whole then"
            with_layers(self.context.asked, source.path, source.revision, measure, why_whole=why_whole)
        axes = axes_of(by_axis, space.original, lambda shape: losses.get(plans[shape]))
        deltas, result = Deltas.of(axes), self.load()
        records = [record_of(candidate) for candidate in space.candidates(kept_layers)]
        for record in records:
            predicted = deltas.predicted(record.shape)
            record.predicted = predicted if predicted < float("inf") else None
        for axis in axes:
            steps = ", ".join(f"{point.value} {loss(point.delta)}" for point in axis.points)
            say(f"  {axis.cut}: {steps}")
        kept = {number: list(layers) for number, layers in kept_layers.items()}
        update = {"fingerprint": self.fingerprint(), "axes": axes, "shapes": records, "kept_layers": kept, "chosen": None}
        self.save(result.model_copy(update=update))
        return ScoresFacts(len(records), len(plans))
