"""Cells of a sweep that compress experts by what no stock reader loads (sweep.compression): counted, observed for, masked.

The inputs of experts are observed in one pass before such cells are measured, on what the recipe calibrates on. They are not
kept: a sweep that goes on observes them again if cells of that kind are missing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from transformers import PreTrainedModel

from toolkit.calibration.expert_inputs import expert_inputs
from toolkit.cuts.compression import ExpertInputs, LowRank, check_compression, compressed, compression_of
from toolkit.moe import find_blocks
from toolkit.pipeline.calibration_data import batches_of_sources, read_sources
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.sweep_choice import SweepChoice
from toolkit.pipeline.sweep_grid import Cell, Grid
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError


def check_writable(recipe: Recipe) -> None:
    """Raises PollardError where a run is asked for what is only measured."""
    if recipe.sweep.compression:
        compression = compression_of(recipe.sweep.compression)
        raise PollardError(
            f"sweep.compression is {compression}, which only `pollard sweep` measures. {compression.not_written}. Say "
            "sweep.compression=null for this run.",
            code="compression.not-written",
        )
    if recipe.sweep.allocation == "measured":
        raise PollardError(
            "sweep.allocation is measured, which only `pollard sweep` does: other numbers of experts in each block are measured "
            "and never written, for no stock reader loads them. Say sweep.allocation=uniform for this run.",
            code="allocation.not-written",
        )


def with_all_experts(grid: Grid, context: RunContext) -> Grid:
    """Where compression is all that a cell does, its plan keeps all experts, and no criterion chooses."""
    if not any(_only_compresses(cell) for cell in grid.cells):
        return grid
    experts = find_blocks(context.meta_model)[0].expert_count
    everything = {"keep": experts, "criterion": PruningRecipe.model_fields["criterion"].default}
    cells = []
    for cell in grid.cells:
        if _only_compresses(cell):
            pruning = cell.recipe.pruning.model_copy(update=everything)
            cell = replace(cell, recipe=cell.recipe.model_copy(update={"pruning": pruning}))
        cells.append(cell)
    return replace(grid, cells=cells)


def _only_compresses(cell: Cell) -> bool:
    pruning = cell.recipe.pruning
    return cell.compression is not None and pruning.keep is pruning.width is pruning.layers is None


def check_compressions(grid: Grid, context: RunContext) -> None:
    """Raises PollardError for a compression that the model's experts cannot have."""
    for text in dict.fromkeys(cell.compression for cell in grid.cells if cell.compression):
        check_compression(context.meta_model, compression_of(text))


def observe_inputs(context: RunContext, model: PreTrainedModel, choices: Sequence[SweepChoice]) -> ExpertInputs:
    """Of all experts, as far as the compressions of `choices` need them; every rank observes its own batches."""
    wanted = [choice.compression for choice in choices if choice.compression]
    if not wanted:
        return {}
    recipe, tokenizer = context.recipe, context.tokenizer
    say("  the experts' inputs are observed, for compression")
    sources = read_sources(recipe, tokenizer, context.data, model)
    batches = batches_of_sources(sources, recipe, model, int(tokenizer.pad_token_id))
    low_ranks = [compression for compression in wanted if isinstance(compression, LowRank)]
    return expert_inputs(model, batches, max(low_ranks, key=lambda low_rank: low_rank.share, default=None))


def compressed_as(choice: SweepChoice, model: PreTrainedModel, inputs: ExpertInputs) -> AbstractContextManager[None]:
    """Inside the context `model` has the weights that the cell's compression leaves; where it has none nothing is changed."""
    return compressed(model, choice.plan, choice.compression, inputs) if choice.compression else nullcontext()
