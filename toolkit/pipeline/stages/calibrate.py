"""The source over a sample of training examples -> calibration/: how much each expert is used, and what it adds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from transformers import PreTrainedModel

from toolkit.calibration import calibrate_mix
from toolkit.calibration.greedy_search import GRAM_BYTES
from toolkit.calibration.token_errors import CHUNK_BYTES
from toolkit.cuts import Plan, masked
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.estimate import Machine, SearchSize, StageEstimate, preceded
from toolkit.moe import MoEBlock, StreamedModel, block_width, find_blocks
from toolkit.moe.placement import with_layers
from toolkit.moe.tokenizer import longer_than_context
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources, sources_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import observed_channels, subset_search
from toolkit.pipeline.layer_choice import chosen_layers
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import CALIBRATE, LAYERS
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say

CHANNEL_VECTORS, GRADIENT_VECTORS = 4, 4  # with a float64 for every channel, prompt and completion apart
STATISTICS_BYTES = 32 * 8  # per expert: at most 8 sums and their squares, for prompt and completion, float64


@dataclass(frozen=True)
class CalibrationFacts(Facts):
    tokens: int
    examples: int
    left_out: int
    beyond_context: int
    not_kept: int
    bad_lines: int


class Calibrate(Stage):
    kind = CALIBRATE
    batch_section = "calibration"
    sections = DECIDING[Role.PRUNED]
    output = "calibration"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (LAYERS, *round_names(context.recipe)[-1:])

    def purpose(self) -> str:
        names, search = [source.name for source in sources_of(self.context.recipe)], subset_search(self.context.recipe)
        searching = f" and search the best sets ({search.mode})" if search else ""
        return f"observe which experts {' + '.join(names)} use{'s' * (len(names) == 1)}{searching}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.calibrate

    def estimate(self, machine: Machine) -> StageEstimate:
        recipe, sizes = self.context.recipe, RecipeOnMachine(self.context, machine)
        model, data, search = sizes.calibrated(), self.context.data_sizes, self._search()
        channels = observed_channels(recipe, self.context.cuts)
        found = sizes.observation(self.name, model, search, backward=channels == "gradients")
        if recipe.calibration.self_generated:
            prompts = data.evaluation.limited(data.calibration.examples)
            found = with_answers(found, sizes.generation("", model, prompts), machine)
        work = f"{found.work}, {recipe.pruning.mode} search over every expert" if search else found.work
        work = f"{found.work}, and backward once" if channels == "gradients" else work
        sizes_of = [block.expert_count * (STATISTICS_BYTES + self._channel_bytes(block)) for block in find_blocks(model.model)]
        return replace(found, work=work, disk=sum(sizes_of) * len(recipe.calibration.data or [None]))

    def _channel_bytes(self, block: MoEBlock) -> int:
        """Of each expert's channels."""
        channels = observed_channels(self.context.recipe, self.context.cuts)
        vectors = {False: 0, True: CHANNEL_VECTORS, "gradients": CHANNEL_VECTORS + GRADIENT_VECTORS}[channels]
        return vectors * 8 * block_width(block)

    def _search(self) -> SearchSize | None:
        search = subset_search(self.context.recipe)
        return search and SearchSize(CHUNK_BYTES["cuda"], GRAM_BYTES, search.forward_passes, search.hidden_states)

    def outlook(self) -> str:
        return observation_outlook(self.context)

    def relief(self, machine: Machine) -> Relief:
        return replace(super().relief(machine), placements=())  # one layer at a time wherever the model lies

    def run(self) -> CalibrationFacts:
        recipe, source = self.context.recipe, self.context.source
        budget = self.context.cuts
        if budget.fewer_active:
            active = budget.experts_per_token
            say(f"  observed with {active} expert{'s' * (active > 1)} per token, as the pruned model will have")
        in_one_piece = "the reconstruction search routes by copies of the routers" if subset_search(recipe) else None
        why_loaded = "it answers the prompts itself" if recipe.calibration.self_generated else None
        if observed_channels(recipe, budget) == "gradients":
            why_loaded = f"{recipe.pruning.width_criterion} takes a backward pass through all of its layers"
            in_one_piece = why_loaded
        with_layers(recipe, source.path, source.revision, self._observe, why_loaded, in_one_piece)
        return self._facts()

    def _observe(self, model: PreTrainedModel | StreamedModel) -> None:
        """Writes the statistics of all sources, each counting by its share."""
        recipe, tokenizer = self.context.recipe, self.context.tokenizer
        sources = read_sources(recipe, tokenizer, self.context.data, model)
        observed = batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id))
        search, budget = subset_search(recipe), self.context.cuts
        mode = search.mode if search else False
        with self._without_layers(model.model if isinstance(model, StreamedModel) else model):
            channels = observed_channels(recipe, budget)
            statistics = calibrate_mix(model, observed, mode, budget.keep, budget.experts_per_token, channels)
        lengths = (len(e.input_ids) for source in sources for e in source.encoded)
        statistics.about = replace(
            statistics.about,
            model=self.context.source.path,
            task=recipe.task.title,
            seed=recipe.seed,
            fingerprint=self.fingerprint(),
            examples=sum(len(source.encoded) for source in sources),
            beyond_context=longer_than_context(self.context.config_of(self.context.source), tokenizer, lengths),
            left_out=sum(source.left_out for source in sources),
            not_kept=sum(source.not_kept for source in sources),
            bad_lines=sum(source.bad_lines for source in sources),
        )
        on_main(lambda: statistics.save(self.context.directory.statistics))

    @contextmanager
    def _without_layers(self, model: PreTrainedModel) -> Iterator[None]:
        """The model has the layers that stay, where the plan drops some: the others' absence changes what these see."""
        layers = chosen_layers(self.context)
        if layers is None:
            yield
            return
        say(f"  observed with the {len(layers.kept)} of {layers.layers} layers that stay")
        active = find_blocks(model)[0].experts_per_token
        with masked(model, Plan(model=self.context.source.path, experts_per_token=active, cuts=[layers])):
            yield

    def _facts(self) -> CalibrationFacts:
        about = ExpertStatistics.load(self.context.directory.statistics).about
        idle = sum(len(block.unobserved or ()) for block in about.blocks.values())
        say(f"  {len(about.blocks)} MoE blocks observed" + (f"; {idle} experts were never chosen" if idle else ""))
        counts = {field.name: getattr(about, field.name) for field in fields(CalibrationFacts)}
        return CalibrationFacts(**counts)


def with_answers(observation: StageEstimate, answers: StageEstimate, machine: Machine) -> StageEstimate:
    """The model answers the prompts first, then it is observed."""
    return preceded(observation, answers, f"the model's own answers first: {answers.work}", machine)
