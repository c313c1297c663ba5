"""The first screen of a sweep: what will be compared, on what, and how long that takes, before any weights are read."""

from functools import partial

from rich.markup import escape

from toolkit.estimate import Machine, StageEstimate, repeated
from toolkit.moe import find_blocks, sizes
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.expected_time import expected_line, machine_of_run
from toolkit.pipeline.first_screen import machine
from toolkit.pipeline.outlook import batches, examples_or_all, observation_outlook
from toolkit.pipeline.stage_list import stages_of
from toolkit.pipeline.stage_names import CALIBRATE, EVALUATE
from toolkit.pipeline.sweep_grid import Cell, Grid
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say
from toolkit.runtime.formatting import amount
from toolkit.runtime.versions import versions

CELLS_SHOWN = 6


def sweep_screen(grid: Grid, context: RunContext) -> None:
    """Prints on rank 0; call it on every rank. The time is that of all cells: what is measured already takes none."""
    recipe, config, model = context.recipe, context.config, context.meta_model
    blocks, settings = find_blocks(model), recipe.evaluation
    on_dev = {"models": [Role.ORIGINAL], "split": "dev", "off_task": None, "harness": None}  # a cell is the original, masked
    asked = {"evaluation": settings.model_copy(update=on_dev), "control": False}
    one_cell = context.variant(recipe.model_copy(update=asked))
    questions = one_cell.data_sizes.evaluation.examples
    facts = {
        "model": f"{recipe.model.path} ({config.model_type}): {amount(sizes(model).parameters)} parameters, "
        f"{blocks[0].expert_count} experts in each of {len(blocks)} blocks",
        "task": recipe.task.name,
        "cells": f"the original and {len(grid.cells)} more: {cell_names(grid.cells)}",
        "observe": f"{observation_outlook(one_cell)}; once for all cells that it can serve",
        "measure": f"{examples_or_all(questions)} dev questions in each cell, {batches(questions, settings.batch_size)}, at most "
        f"{settings.max_new_tokens:,} new tokens each; masked, nothing is cut or trained",
        "machine": machine(recipe, config),
        "versions": versions(),
        "results": str(context.directory.sweep),
        "takes": _expected(one_cell, len(grid.cells) + 1, machine_of_run()),
    }
    say(f"[bold]sweep of {recipe.name}[/]")
    for name, value in facts.items():
        say(f"  [bold]{name:<10}[/]{escape(value)}")
    say()


def cell_names(cells: list[Cell]) -> str:
    """The first of them, and how many there are beside: "random, keep 5; reap, keep 5; … (12)"."""
    names = []
    for cell in cells:
        keep = cell.recipe.pruning.keep
        drawn = f", seed {cell.seed}" if "random" in cell.recipe.pruning.criteria else ""
        names.append(f"{cell.label}, keep {'all' if keep is None else keep}{drawn}")
    more = len(names) - CELLS_SHOWN
    return "; ".join(names[:CELLS_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _expected(one_cell: RunContext, cells: int, there: Machine) -> str:
    stages = {stage.name: stage for stage in stages_of(one_cell)}
    measure = stages[f"{EVALUATE}/{Role.ORIGINAL}"]

    def all_cells() -> StageEstimate | None:
        estimate = measure.estimate(there)
        return estimate and repeated(estimate, cells)

    return expected_line([partial(stages[CALIBRATE].estimate, there), all_cells], there)
