"""The source over a sample of training examples -> calibration/: how much each expert is used, and what it adds."""

from dataclasses import dataclass, fields, replace

from transformers import PreTrainedModel

from toolkit.calibration import calibrate_mix
from toolkit.calibration.greedy_search import GRAM_BYTES
from toolkit.calibration.token_errors import CHUNK_BYTES
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.estimate import Machine, SearchSize, StageEstimate
from toolkit.moe import StreamedModel, find_blocks
from toolkit.moe.placement import with_layers
from toolkit.moe.tokenizer import longer_than_context
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources, sources_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import subset_search
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief
from toolkit.pipeline.rounds import round_names
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import CALIBRATE
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say

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
        self.needs = round_names(context.recipe)[-1:]

    def purpose(self) -> str:
        names, search = [source.name for source in sources_of(self.context.recipe)], subset_search(self.context.recipe)
        searching = f" and search the best sets ({search.mode})" if search else ""
        return f"observe which experts {' + '.join(names)} use{'s' * (len(names) == 1)}{searching}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.calibrate

    def estimate(self, machine: Machine) -> StageEstimate:
        recipe, sizes = self.context.recipe, RecipeOnMachine(self.context, machine)
        model, data, search = sizes.observed(), self.context.data_sizes, self._search()
        found = sizes.observation(self.name, model, search)
        if recipe.calibration.self_generated:
            prompts = data.evaluation.limited(data.calibration.examples)
            found = _with_answers(found, sizes.generation("", model, prompts), machine)
        experts = sum(block.expert_count for block in find_blocks(model.model))
        work = f"{found.work}, {recipe.pruning.mode} search over every expert" if search else found.work
        return replace(found, work=work, disk=STATISTICS_BYTES * experts * len(recipe.calibration.data or [None]))

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
        answering = "it answers the prompts itself" if recipe.calibration.self_generated else None
        with_layers(recipe, source.path, source.revision, self._observe, answering, in_one_piece)
        return self._facts()

    def _observe(self, model: PreTrainedModel | StreamedModel) -> None:
        """Writes the statistics of all sources, each counting by its share."""
        recipe, tokenizer = self.context.recipe, self.context.tokenizer
        sources = read_sources(recipe, tokenizer, self.context.data, model)
        observed = batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id))
        search, budget = subset_search(recipe), self.context.cuts
        mode = search.mode if search else False
        statistics = calibrate_mix(model, observed, mode, budget.keep, budget.experts_per_token)
        lengths = (len(e.input_ids) for source in sources for e in source.encoded)
        statistics.about = replace(
            statistics.about,
            model=self.context.source.path,
            task=recipe.task.name,
            seed=recipe.seed,
            fingerprint=self.fingerprint(),
            examples=sum(len(source.encoded) for source in sources),
            beyond_context=longer_than_context(self.context.config_of(self.context.source), tokenizer, lengths),
            left_out=sum(source.left_out for source in sources),
            not_kept=sum(source.not_kept for source in sources),
            bad_lines=sum(source.bad_lines for source in sources),
        )
        on_main(lambda: statistics.save(self.context.directory.statistics))

    def _facts(self) -> CalibrationFacts:
        about = ExpertStatistics.load(self.context.directory.statistics).about
        idle = sum(len(block.unobserved or ()) for block in about.blocks.values())
        say(f"  {len(about.blocks)} MoE blocks observed" + (f"; {idle} experts were never chosen" if idle else ""))
        counts = {field.name: getattr(about, field.name) for field in fields(CalibrationFacts)}
        return CalibrationFacts(**counts)


def _with_answers(observation: StageEstimate, answers: StageEstimate, machine: Machine) -> StageEstimate:
    """The model answers the prompts first, then it is observed."""
    gpu, host = observation.gpu, observation.host
    if machine.gpus:
        gpu, host = max(gpu, answers.gpu, key=lambda parts: sum(parts.values())), host | answers.host
    flops, seconds = (
        None if first is None or then is None else then + first
        for first, then in ((answers.flops, observation.flops), (answers.seconds, observation.seconds))
    )
    note = f"the model's own answers first: {answers.work}"
    return replace(observation, gpu=gpu, host=host, flops=flops, seconds=seconds, notes=(*observation.notes, note))
