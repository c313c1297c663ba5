"""Plan and calibration data -> dense/plan.json: how much every kept expert counts where all of them serve every token."""

from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedModel

from toolkit.calibration import fit_dense
from toolkit.cuts import Plan
from toolkit.estimate import Machine, StageEstimate
from toolkit.moe import StreamedModel
from toolkit.moe.placement import with_layers
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import MERGE
from toolkit.pipeline.stages.select import Select
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say


@dataclass(frozen=True)
class MergeFacts(Facts):
    """Squared errors of the blocks' outputs on the calibration tokens, relative to the original's, on average over blocks."""

    error: float
    mean_gate_error: float


class Merge(Stage):
    kind = MERGE
    batch_section = "calibration"
    sections = DECIDING[Role.PRUNED]
    result = "by plan"
    output = "dense"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (Select.kind, *round_names(context.recipe)[-1:])

    def is_asked_for(self) -> bool:
        return self.context.recipe.pruning.form == "dense"

    def purpose(self) -> str:
        return "weigh the kept experts for the dense form, in which all of them serve every token"

    def fingerprint(self) -> str:
        return self.context.fingerprints.merge

    def estimate(self, machine: Machine) -> StageEstimate:
        """The original and the dense model so far, layer by layer."""
        sizes = RecipeOnMachine(self.context, machine)
        return sizes.observation(self.name, sizes.calibrated())

    def outlook(self) -> str:
        return observation_outlook(self.context)

    def run(self) -> MergeFacts:
        recipe, source, run = self.context.recipe, self.context.source, self.context.directory
        why_loaded = "it answers the prompts itself" if recipe.calibration.self_generated else None
        in_one_piece = "the dense form is weighed by copies of the routers"
        with_layers(recipe, source.path, source.revision, self._weigh, why_loaded, in_one_piece)
        blocks = (Plan.load(run.dense).dense or {}).values()
        error = fmean(block.error or 0.0 for block in blocks)
        mean_gate_error = fmean(block.mean_gate_error or 0.0 for block in blocks)
        say(
            f"  each block's output is off by {error:.1%} of the original's (squared, on average over {len(blocks)} blocks); "
            f"with mean gate weights it would be {mean_gate_error:.1%}"
        )
        return MergeFacts(error, mean_gate_error)

    def _weigh(self, model: PreTrainedModel | StreamedModel) -> None:
        recipe, run, tokenizer = self.context.recipe, self.context.directory, self.context.tokenizer
        sources = read_sources(recipe, tokenizer, self.context.data, model)
        observed = batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id))
        plan = fit_dense(model, Plan.load(run.plan), [batch for source in observed for batch in source.batches])

        def save() -> None:
            run.dense.parent.mkdir(exist_ok=True)
            plan.save(run.dense)

        on_main(save)
