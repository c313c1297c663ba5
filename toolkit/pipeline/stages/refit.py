"""Source, pruned/ and training examples -> refitted/: the pruned checkpoint with its down projections computed anew, by least
squares, so that its layers' outputs come close to the source's. No gradients (docs/refit.md).

refit.json says how well, module by module:

    {"format": 1, "tokens": 5120, "held_out": 1024, "modules": [{"module": "model.layers.0.mlp.experts.down_proj",
     "target": "residual", "channels": 512, "penalty": 0.01, "error_before": 0.41, "error_after": 0.22}, …]}
"""

import json
from dataclasses import asdict, dataclass
from statistics import fmean

from transformers import PreTrainedModel

from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.estimate import Machine, RefitSolver, StageEstimate, estimate_refit
from toolkit.moe.placement import with_model
from toolkit.pipeline.calibration_data import Source, read_sources, refit_recipe
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief, change, halves
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.pipeline.stages.calibrate import with_answers
from toolkit.recipe.roles import Role
from toolkit.recovery.refit import RefitResult, refit_checkpoint
from toolkit.recovery.refit.layer import GROUP_CHANNELS, PENALTIES, SWEEPS
from toolkit.runtime.distributed import on_main, say, shard
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import percent
from toolkit.tasks import padded_batches


@dataclass(frozen=True)
class RefitFacts(Facts):
    """Errors are the mean over modules of the squared error on held-out tokens, relative to the squared target."""

    examples: int
    left_out: int
    tokens: int
    held_out: int
    modules: int
    refit: int  # modules that were changed
    error_before: float
    error_after: float


class Refit(Stage):
    kind = MADE_BY[Role.REFITTED]
    batch_section = "calibration"
    sections = DECIDING[Role.REFITTED]
    result = "by plan"
    output = "refitted"
    checkpoints = ("refitted",)
    remaking = "the pruned model is refit again, where it is needed"
    last_screen = Shown(2, "the pruned model, refit")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (MADE_BY[Role.PRUNED], *round_names(context.recipe)[-1:])

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.pruning.refit)

    def purpose(self) -> str:
        return "compute the down projections that stay anew, for the layers' outputs to come close to those before the cut"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.REFITTED]

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes, recipe = RecipeOnMachine(self._reading, machine), self.context.recipe
        source, data = sizes.observed(), self._reading.data_sizes
        solver = RefitSolver(len(PENALTIES), GROUP_CHANNELS, SWEEPS)
        models, batch = (source, sizes.pruned()), recipe.calibration.batch_size
        found = estimate_refit(self.name, machine, models, data.calibration, batch, solver)
        if recipe.calibration.self_generated:
            prompts = data.evaluation.limited(data.calibration.examples)
            found = with_answers(found, sizes.generation("", source, prompts), machine)
        return found

    def outlook(self) -> str:
        return f"{observation_outlook(self._reading)}; no gradients"

    def relief(self, machine: Machine) -> Relief:
        """Smaller batches, then fewer examples: what refit holds of every token is most of what it takes of RAM."""
        recipe = self._reading.recipe
        fewer = (change("pruning.refit.examples", number) for number in halves(recipe.calibration.examples))
        others = [str(role) for role in recipe.evaluation.models if role != Role.REFITTED]
        without = change("pruning.refit", False) | change("evaluation.models", others)
        batches = super().relief(machine).changes
        return Relief([*batches, *fewer], omission=without if others else None)

    @property
    def _reading(self) -> RunContext:
        """This run, as if calibration read what refit reads."""
        return self.context.variant(refit_recipe(self.context.recipe))

    def run(self) -> RefitFacts:
        run, source = self.context.directory, self.context.source
        sources, tokenizer = self._sources(), self.context.tokenizer
        encoded = [example for each in sources for example in each.encoded]
        batches = shard(padded_batches(encoded, self.context.recipe.calibration.batch_size, int(tokenizer.pad_token_id)))
        layers = Plan.load(run.plan).cut(LayersCut)
        kept = layers.kept if layers else None
        result = refit_checkpoint(source.path, run.pruned, run.refitted, batches, kept, source.revision, overwrite=True)
        on_main(lambda: write_text(run.refit, _as_json(result)))
        facts = _facts(result, len(encoded), sum(each.left_out for each in sources))
        say(
            f"  {facts.refit} of {facts.modules} modules refit on {facts.tokens:,} tokens; relative error on {facts.held_out:,} "
            f"held-out ones {percent(facts.error_before)} -> {percent(facts.error_after)} on average"
        )
        return facts

    def _sources(self) -> list[Source]:
        recipe, source, data = self._reading.recipe, self.context.source, self.context.data
        if not recipe.calibration.self_generated:
            return read_sources(recipe, self.context.tokenizer, data)

        def answered(model: PreTrainedModel) -> list[Source]:
            return read_sources(recipe, self.context.tokenizer, data, model)

        say("  the whole model is loaded first: it answers the prompts itself")
        return with_model(recipe, source.path, source.revision, answered)


def _facts(result: RefitResult, examples: int, left_out: int) -> RefitFacts:
    blocks = result.blocks
    return RefitFacts(
        examples=examples,
        left_out=left_out,
        tokens=result.tokens,
        held_out=result.held_out,
        modules=len(blocks),
        refit=sum(block.penalty is not None for block in blocks),
        error_before=fmean(block.error_before for block in blocks),
        error_after=fmean(block.error_after for block in blocks),
    )


def _as_json(result: RefitResult) -> str:
    facts = {"format": 1, "tokens": result.tokens, "held_out": result.held_out}
    return json.dumps(facts | {"modules": [asdict(block) for block in result.blocks]}, indent=1) + "\n"
