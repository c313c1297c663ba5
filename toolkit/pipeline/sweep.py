"""How far can it be pruned? One calibration, one model in memory, and every cell is that model masked: no checkpoints.

calibrate ─► select every cell ─► mask and measure, one after the other ─► sweep/table.json, report.html

Everything is measured on the dev slice; the test set is never read. What is measured is a plan: two cells
with the same choice share one file, and a finished file is never measured again.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from transformers import PreTrainedModel

from toolkit.cuts import masked, shape_of
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.evaluation import measure_fidelity, write_reference
from toolkit.evaluation.probe import check_probe, measure_probe, read_probe
from toolkit.moe import find_blocks
from toolkit.moe.placement import with_model
from toolkit.pipeline.allocation import allocate, check_criterion, chooser
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.loss_file import LossFile
from toolkit.pipeline.manifest import SWEEP
from toolkit.pipeline.plan_choice import choose_plan
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import do_stage
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.layers import Layers
from toolkit.pipeline.sweep_choice import SweepChoice, UniformCell
from toolkit.pipeline.sweep_compression import check_compressions, compressed_as, observe_inputs, with_all_experts
from toolkit.pipeline.sweep_grid import MEASURED, Grid
from toolkit.pipeline.sweep_screen import sweep_screen
from toolkit.pipeline.training_fingerprints import own_scorer_identity
from toolkit.pipeline.write_report import write_report_on_main
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.report import show_sweep, tabulate
from toolkit.report.measurements import SweepTable
from toolkit.runtime.distributed import barrier, check_shared, is_main, on_main, say, world_size
from toolkit.runtime.errors import Mistakes
from toolkit.runtime.files import JsonObject, fingerprint_of, fingerprint_of_source, write_text
from toolkit.runtime.formatting import loss, percent
from toolkit.runtime.progress import duration
from toolkit.runtime.run_files import RUN_FILE_PATTERNS, SHARD_PATTERN, remove_matching
from toolkit.selection import WIDTH_CRITERIA, kept_unobserved


def sweep(grid: Grid, root: str = "runs", fresh: bool = False) -> SweepTable:
    """Measures every cell that is not measured yet, on every rank; returns what sweep/table.json holds.

    `fresh` measures all of them again. Raises PollardError before anything is measured for cells that cannot be.
    """
    recipe, started = grid.recipe, time.monotonic()
    directory = RunDirectory(recipe.name, root)
    grid = with_all_experts(grid, RunContext(recipe, directory))
    owner = recipe.model.path, recipe.task.name
    on_main(lambda: directory.check_owner(*owner))
    _check(grid, directory)
    on_main(directory.lock)
    try:
        check_shared(directory.path)
        on_main(lambda: _open(directory, recipe, fresh))
        context = RunContext(recipe, directory)
        sweep_screen(grid, context)
        places = [_calibrated(context.variant(recipe)) for recipe in _observed_recipes(grid, context)]
        choices = on_main(lambda: _choose(grid, context, places))
        missing = on_main(lambda: [choice for choice in choices if not _measured(directory.sweep / choice.file)])
        say(f"[bold]{'sweep':<20}[/] {len(choices)} cells, {len(choices) - len(missing)} of them measured already")
        if missing:
            _measure(context, list({choice.file: choice for choice in missing}.values()), directory.sweep)
        table = on_main(lambda: _finish(context, choices))
        show_sweep(table)
        write_report_on_main(directory.path)
        say(f"Report: {directory.path / 'report.html'}")
        say(f"\n[bold]Done[/] in {duration(time.monotonic() - started)}")
    finally:
        directory.unlock()
    return table


def _check(grid: Grid, directory: RunDirectory) -> None:
    """Everything that can be known to be wrong before the calibration starts, of all cells together."""
    mistakes, context = Mistakes(), RunContext(grid.recipe, directory)
    evaluation = grid.recipe.evaluation.model_copy(
        update={"models": ["pruned"], "split": "dev", "off_task": None, "harness": None}
    )
    cells = [context.variant(cell.recipe.model_copy(update={"evaluation": evaluation, "control": False})) for cell in grid.cells]
    notes = mistakes.collect(partial(check, cells[0], variants=cells[1:]))
    if other := grid.recipe.sweep.off_task:
        mistakes.collect(lambda: check_probe(other.source, context.data))
    mistakes.collect(lambda: check_compressions(grid, context))
    for pruning in [cell.recipe.pruning for cell in grid.cells if cell.allocated]:
        mistakes.collect(partial(check_criterion, pruning.criterion, pruning.mode))
    mistakes.raise_all()
    if grid.left_out:
        why = "compression is measured with fewer experts, not with other cuts or a measured allocation"
        say(f"[bold]note[/] {grid.left_out} combination{'s' * (grid.left_out > 1)} left out: {why}")
    for note in notes or ():
        say(f"[bold]note[/] {escape(note)}")


def _open(directory: RunDirectory, recipe: Recipe, fresh: bool) -> None:
    """A sweep leaves the stages of a run that stands there already as they are."""
    if not directory.manifest.exists():
        directory.open(recipe.model.path, recipe.task.name, dump_recipe(recipe), [])
    if fresh:
        remove_matching(directory.sweep, RUN_FILE_PATTERNS["sweep"])
    directory.sweep.mkdir(exist_ok=True)


def _observed_recipes(grid: Grid, context: RunContext) -> list[Recipe]:
    """The recipe of every cell as it is calibrated: where any cell narrows experts, one pass observes channels for all."""
    narrow = [cell.recipe.pruning for cell in grid.cells if context.budget_of(cell.recipe.pruning).width]
    neediest = max(narrow, key=lambda pruning: WIDTH_CRITERIA[pruning.width_criterion].gradients, default=None)
    recipes = []
    for cell in grid.cells:
        pruning = cell.recipe.pruning
        if neediest:
            settings = {key: getattr(neediest, key) for key in ("width", "width_criterion", "width_multiple")}
            pruning = pruning.model_copy(update=settings)
        # Layers that are drawn are observed without those that are gone, so that every draw has a calibration of its own
        drawn = pruning.layers is not None and pruning.layer_criterion == "random"
        changes = {"pruning": pruning, **({"seed": cell.seed} if drawn else {})}
        recipes.append(cell.recipe.model_copy(update=changes))
    return recipes


def _calibrated(context: RunContext) -> RunDirectory:
    """Where the statistics for this recipe are: in the run's own folder where they fit (or it has none, and they are of all
    layers), else in one of the sweep's."""
    run, calibrate = context.directory, Calibrate(context)
    free = context.cuts.layers is None and on_main(lambda: calibrate.name not in run.entries())
    own = free or on_main(lambda: run.is_done(calibrate.name, calibrate.fingerprint()))
    if not own:
        context = context.variant(context.recipe, RunDirectory(calibrate.fingerprint(), run.sweep / "calibration"))
        on_main(lambda: _make_place(context.directory, run))
    place = context.directory
    stages: list[Stage] = [Layers(context), Calibrate(context)]
    for stage in stages:
        if stage.is_asked_for() and not on_main(partial(place.is_done, stage.name, stage.fingerprint())):
            do_stage(stage, "its result serves every cell" if own else "other settings than the run's")
    barrier()
    return place


def _make_place(place: RunDirectory, run: RunDirectory) -> None:
    """What is measured for a choice of layers serves every number of layers: all places of the sweep have it together."""
    shared = run.sweep / place.layer_measurements.name
    for folder in (place.path, shared):
        folder.mkdir(parents=True, exist_ok=True)
    if not place.layer_measurements.exists():
        place.layer_measurements.symlink_to(Path("..", "..", shared.name))


def _choose(grid: Grid, context: RunContext, places: list[RunDirectory]) -> list[SweepChoice]:
    """The original, then every cell's choice. Raises PollardError for a criterion that the statistics cannot serve."""
    recipe = grid.recipe
    judged = [
        fingerprint_of_source(recipe.model.path), recipe.model.model_dump(exclude={"placement"}), recipe.task.model_dump(),
        context.data.task_fingerprint(recipe.task, "train"), recipe.calibration.max_length,
        [recipe.evaluation.examples, recipe.evaluation.max_new_tokens, recipe.evaluation.fidelity],
        recipe.sweep.model_dump(exclude={"compression", "allocation"}), _off_task_source(context),
        *own_scorer_identity(recipe.task),
    ]  # fmt: skip

    def file_of(plan: Plan, *further: str) -> str:
        """`further`: what more is done, and what identifies the calibration that it looks at."""
        return f"keep{plan.keep}-{fingerprint_of(judged, plan.choice(), plan.experts_per_token, *further)}.json"

    blocks = find_blocks(context.meta_model)
    count = blocks[0].expert_count
    everyone = {block.name: BlockPlan(experts=count, kept=list(range(count))) for block in blocks}
    original = Plan.of_experts(
        model=recipe.model.path, criterion="original", keep=count, experts_per_token=blocks[0].experts_per_token, blocks=everyone
    )
    choices = {("", shape_of(original), 0): SweepChoice(None, original, 0, file_of(original))}
    loaded = {place.path: ExpertStatistics.load(place.statistics) for place in places}
    for cell, place in zip(grid.cells, places, strict=True):
        statistics = loaded[place.path]
        own = context.variant(cell.recipe, place)
        plan = choose_plan(own, statistics, cell.seed)
        uniform = file_of(plan)
        if uniform == file_of(original) and not cell.compression:  # all of everything
            continue
        further = cell.compression or (MEASURED if cell.allocated else "")
        file = file_of(plan, further, own.fingerprints.calibrate) if further else uniform
        beside = None
        if cell.allocated:
            losses = fingerprint_of(judged, own.fingerprints.calibrate, *chooser(plan))
            beside = UniformCell(uniform, place.statistics, f"allocation-{losses}.json")
        unobserved = kept_unobserved(statistics, plan)
        choices[cell.label, shape_of(plan), cell.seed] = SweepChoice(cell, plan, unobserved, file, beside)
    return list(choices.values())


def _off_task_source(context: RunContext) -> Any:
    """What identifies the data that the pruned models are measured on beside the task; None where there is none."""
    other = context.recipe.sweep.off_task
    return other and context.data.source_fingerprint(other.source, context.recipe.task)


def _measured(path: Path) -> JsonObject | None:
    """What a cell's file holds; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _measure(context: RunContext, choices: list[SweepChoice], folder: Path) -> None:
    """One file per choice, written as soon as it is measured."""
    recipe, tokenizer = context.recipe, context.tokenizer
    task, other = read_probe(DataRecipe(task=recipe.task), recipe, tokenizer, context.data), recipe.sweep.off_task
    beside = other and replace(read_probe(other.source, recipe, tokenizer, context.data), name=other.name)
    probes = {"task": task, "off_task": beside}
    gold, said = _gold(context), folder / "original"  # what the original says of them, until all cells are measured

    def measure(model: PreTrainedModel) -> None:
        on_main(lambda: remove_matching(said, SHARD_PATTERN))
        if gold:
            write_reference(model, gold, said, "")
        inputs, begun = observe_inputs(context, model, choices), time.monotonic()
        for number, choice in enumerate(choices, start=1):
            started = time.monotonic()
            choice, search = _searched(choice, model, task.batches, folder)
            with compressed_as(choice, model, inputs), masked(model, choice.plan):
                found = {
                    name: probe and measure_probe(model, tokenizer, recipe, probe).to_json() for name, probe in probes.items()
                }
                found["fidelity"] = measure_fidelity(model, gold, said, "").to_json() if gold else None
            seconds = round(time.monotonic() - started, 1)
            facts = {"format": 2, **choice.facts(), **search, **found, "seconds": seconds, "ranks": world_size()}
            if is_main():
                write_text(folder / choice.file, json.dumps(facts) + "\n")
            on_task: Any = found["task"]
            result = f"{percent(on_task['score'])}, loss {loss(on_task['loss'])}"
            left = (time.monotonic() - begun) / number * (len(choices) - number)
            after = f", {duration(left)} left" if number < len(choices) else ""
            say(f"  {number}/{len(choices)} {choice.name}: {result} [dim]{seconds} s{after}[/]")

    with_model(recipe, recipe.model.path, recipe.model.revision, measure, why_whole="a sweep masks the routers of a whole model")
    barrier()
    on_main(lambda: remove_matching(said, SHARD_PATTERN))


def _searched(
    choice: SweepChoice, model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]], folder: Path
) -> tuple[SweepChoice, JsonObject]:
    """A cell with a measured allocation, with what the search on `batches` has found, and what its file says of the search; other
    cells as they are."""
    if not choice.uniform:
        return choice, {}
    statistics = ExpertStatistics.load(choice.uniform.statistics)
    cache = LossFile(folder / choice.uniform.losses, choice.uniform.losses)
    allocated = allocate(model, choice.plan, statistics, batches, cache)
    return replace(choice, plan=allocated.plan), {"measurements": allocated.found.measurements}


def _gold(context: RunContext) -> list[dict[str, torch.Tensor]]:
    """The dev answers over which masked models are compared with the original; none where the recipe does not ask for it."""
    recipe = context.recipe
    if not recipe.evaluation.fidelity:
        return []
    answers = DataRecipe(task=recipe.task, examples=recipe.evaluation.fidelity)
    return read_probe(answers, recipe, context.tokenizer, context.data).batches


def _finish(context: RunContext, choices: list[SweepChoice]) -> SweepTable:
    """Puts the cells' files together and writes the table, then the stage's entry."""
    directory, recipe = context.directory, context.recipe
    rows, seconds = [], {}
    some_compressed = any(choice.compression for choice in choices)
    with_sizes = some_compressed or any(len(choice.plan.cuts) > 1 for choice in choices)
    for choice in choices:
        found = json.loads((directory.sweep / choice.file).read_text())
        seconds[choice.file] = found["seconds"]
        rows.append(choice.row(context, found, with_sizes, some_compressed))
    table = tabulate(rows)
    write_text(directory.sweep / "table.json", json.dumps(table.as_json(), indent=1) + "\n")
    fingerprint = fingerprint_of(table.as_json())
    if not directory.is_done(SWEEP, fingerprint):
        directory.finish(SWEEP, fingerprint, sum(seconds.values()), seed=recipe.seed, ranks=world_size(), cells=len(rows))
    return table
