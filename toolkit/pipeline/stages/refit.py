"""Source, pruned/ and training examples -> refitted/: the pruned checkpoint, of which each layer's last linear maps are computed
anew by least squares, so that what the layer leaves comes close to what the source's does. No gradients (docs/refit.md).

refit.json says how close, layer by layer:

    {"format": 1, "tokens": 5120, "held_out": 1024, "blocks": [{"module": "model.layers.0", "weights": ["…experts.down_proj", …],
     "target": "residual", "channels": 512, "penalties": [0.01], "error_before": 0.41, "error_after": 0.22}, …]}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedModel

from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.estimate import Machine, RefitSize, RefitUnit, StageEstimate, estimate_refit
from toolkit.moe import blocks_by_layer, blocks_in, decoder_layers, quantization_of
from toolkit.moe.placement import with_model
from toolkit.moe.residual_writers import ExpertsWriter, ResidualWriter, writers_in
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
from toolkit.recovery.refit.layer import PENALTIES, ROUNDS, SWEEPS
from toolkit.recovery.refit.passes import HELD_OUT
from toolkit.recovery.refit.projections import STEPS
from toolkit.recovery.refit.tokens import CHUNK_TOKENS, groups_of
from toolkit.runtime.distributed import on_main, say, shard
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import percent
from toolkit.tasks import padded_batches


@dataclass(frozen=True)
class RefitFacts(Facts):
    """`tokens` that the weights were fitted to, and `held_out` ones. Errors are the mean over layers of the squared error on
    held-out tokens, relative to the squared size of what was asked of the weights."""

    examples: int
    left_out: int
    tokens: int
    held_out: int
    layers: int
    changed: int  # of these layers
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
        return "fit what each layer adds to the residual stream to what it was before the cut, by least squares"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.REFITTED]

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes, recipe = RecipeOnMachine(self._reading, machine), self.context.recipe
        source, data = sizes.observed(), self._reading.data_sizes
        pruned, batch = sizes.pruned(), recipe.calibration.batch_size
        size = refit_size(pruned.model)
        found = estimate_refit(self.name, machine, (source, pruned), data.calibration, batch, size)
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
        on_main(lambda: write_text(run.refit, json.dumps({"format": 1} | result.as_json(), indent=1) + "\n"))
        facts = _facts(result, sources)
        say(
            f"  held-out error {percent(facts.error_before)} -> {percent(facts.error_after)} on average, relative to what was "
            "asked of a layer's weights"
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


def check_refit(context: RunContext) -> None:
    """Raises PollardError, before anything is calibrated, where the pruned model's weights will be none to compute with."""
    if context.recipe.pruning.refit and (quantized := quantization_of(context.config)):
        raise PollardError(
            f"pruning.refit changes plain numbers, and the weights of {context.recipe.model.path} are quantized ({quantized}): "
            "start from a plain copy of it (bfloat16), or leave pruning.refit out.",
            code="refit.quantized",
        )


def refit_size(model: PreTrainedModel) -> RefitSize:
    """What is refit of a cut model, which may be without weights, at most: of layers with experts what is in their block (only
    where attention runs beside it, its projection is refit as well), of others all that might write into the stream linearly."""
    path, layers = decoder_layers(model)
    hidden, writers = int(model.config.get_text_config().hidden_size), []
    for number, (layer, blocks) in enumerate(zip(layers, blocks_by_layer(blocks_in(model), layers), strict=True)):
        found = writers_in(f"{path}.{number}", layer, blocks, hidden)
        inside = [writer for writer in found if any(writer.name.startswith(f"{block.name}.") for block in blocks)]
        writers.append(inside or found)
    groups = [groups_of([(writer, 1.0) for writer in mine]) for mine in writers if mine]
    return RefitSize(
        layers=[
            [[RefitUnit(u.writer.width, _share(u.writer), _numbers(u.writer)) for u in group] for group in layer]
            for layer in groups
        ],
        inputs=max(sum(hidden if isinstance(writer, ExpertsWriter) else writer.width for writer in mine) for mine in writers),
        penalties=len(PENALTIES),
        sweeps=SWEEPS,
        held_out=1 / HELD_OUT,
        chunk_tokens=CHUNK_TOKENS,
        rounds=ROUNDS,
        steps=STEPS,
    )


def _share(writer: ResidualWriter) -> float:
    """Of the tokens, those that have the channels of one of the writer's units: of an expert, if all are chosen alike often."""
    return writer.block.experts_per_token / writer.units if isinstance(writer, ExpertsWriter) else 1.0


def _numbers(writer: ResidualWriter) -> int:
    """What one expert's channels are made of: gate and up."""
    return writer.numbers if isinstance(writer, ExpertsWriter) else 0


def _facts(result: RefitResult, sources: Sequence[Source]) -> RefitFacts:
    return RefitFacts(
        examples=sum(len(source.encoded) for source in sources),
        left_out=sum(source.left_out for source in sources),
        tokens=result.tokens,
        held_out=result.held_out,
        layers=len(result.blocks),
        changed=sum(block.changed for block in result.blocks),
        error_before=fmean(block.error_before for block in result.blocks),
        error_after=fmean(block.error_after for block in result.blocks),
    )
