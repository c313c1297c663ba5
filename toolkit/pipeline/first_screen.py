"""The first screen of a run: what will happen, with its arithmetic, before any weights are read."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from rich.markup import escape

from toolkit.cuts import shaped_meta_model
from toolkit.moe import expert_width, find_blocks, sizes
from toolkit.moe.load import resolve_dtype
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.expected_time import expected_line, machine_of_run
from toolkit.pipeline.recipe_changes import described
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.stage import Stage
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say, world_size
from toolkit.runtime.formatting import amount
from toolkit.runtime.progress import duration
from toolkit.runtime.versions import versions


def first_screen(context: RunContext, planned: Sequence[Stage], reasons: Mapping[str, str]) -> None:
    """`reasons`: by a stage's name why it must run, empty where it is done. Prints on rank 0; call it on every rank."""
    recipe, config, model = context.recipe, context.config, context.meta_model
    before, after = sizes(model), sizes(shaped_meta_model(config, context.budget.shape))
    most, least = ("at most ", "at least ") if context.is_provisional else ("", "")
    there = machine_of_run()
    facts = {
        "model": f"{recipe.model.path} ({config.model_type}): {amount(before.parameters)} → {most}{amount(after.parameters)} "
        f"parameters, {least}{before.parameters / after.parameters:.2f} times smaller",
        **pruning_lines(context),
        **({"fit": "no shape is chosen yet: the numbers are those of the largest within the limits"} if most else {}),
        "task": recipe.task.name,
        "machine": machine(recipe, config),
        "versions": versions(),
        "results": str(context.directory.path),
        "takes": expected_line([partial(stage.estimate, there) for stage in planned if reasons[stage.name]], there),
    }
    say(f"[bold]{recipe.name}[/]")
    for name, value in facts.items():
        say(f"  [bold]{name:<10}[/]{escape(value)}")
    say()
    for stage in planned:
        work = stage.outlook() if reasons[stage.name] else "done already"
        say(f"{'' if reasons[stage.name] else '[dim]'}  {stage.name:<19} {escape(work)}".rstrip())
    for line in replaced_models(context, [stage for stage in planned if reasons[stage.name]]):
        say(f"\n[bold yellow]note:[/] {escape(line)}")
    say()


def pruning_lines(context: RunContext) -> dict[str, str]:
    """What is cut, kind by kind, over all rounds."""
    pruning, blocks, budget = context.recipe.pruning, find_blocks(context.meta_model), context.budget
    budgets = [context.budget_of(pruning.of_step(step)) for step in early_rounds(context.recipe)] + [budget]

    def counts(there: int, after: Iterable[int | None]) -> str:
        """ "8 → 6 → 4"; a round that cuts something else repeats no number."""
        return " → ".join(map(str, dict.fromkeys([there, *(number or there for number in after)])))

    experts, active = counts(blocks[0].expert_count, (b.keep for b in budgets)), f"{budget.experts_per_token} active per token"
    if pruning.form == "dense":
        active = "all of these for every token, as one layer"
    lines = {"experts": f"{experts} in each of {len(blocks)} blocks, {active}, by {pruning.criterion}"}
    if first := context.first_run:
        added = f"{first.plan.keep} of {first.onto} and {budget.keep - first.plan.keep} more"
        lines["experts"] = (
            f"{added} of {blocks[0].expert_count} in each of {len(blocks)} blocks, {active}, by {pruning.criterion}"
        )
    elif budget.keep == blocks[0].expert_count:
        lines["experts"] = f"all {experts} stay in each of {len(blocks)} blocks, {active}"
    if budget.width:
        widths = counts(expert_width(context.meta_model), (b.width for b in budgets))
        lines["width"] = f"{widths} channels of every expert, by {pruning.width_criterion}"
    if budget.layers:
        how = "as the recipe lists them" if isinstance(pruning.layers, list) else f"by {pruning.layer_criterion}"
        lines["layers"] = f"{counts(budget.depth, (b.layer_count for b in budgets))}, {how}"
    return lines


def machine(recipe: Recipe, config: object) -> str:
    """ "2 ranks on CPU, float32 (auto: no GPU)"."""
    gpu = torch.cuda.is_available()
    ranks = f"{world_size()} rank{'s' * (world_size() > 1)}"
    where = f"{ranks} on CPU" if not gpu else f"{ranks}, {torch.cuda.get_device_name()} each"
    dtype = str(resolve_dtype(recipe.model.dtype, config) or "the checkpoint's own numbers").removeprefix("torch.")
    if recipe.model.dtype == "auto":
        dtype += " (auto: the checkpoint's own)" if gpu else " (auto: no GPU)"
    return f"{where}, {dtype}"


def replaced_models(context: RunContext, to_do: Iterable[Stage]) -> list[str]:
    """A line for each trained model that the stages `to_do` will replace: how it was made, how long that took, how to keep
    it."""
    run = context.directory
    entries, lines = run.entries(), []
    for stage in (stage for stage in to_do if stage.result == "unique"):
        there = [str(run.path / name) for name in stage.checkpoints or (stage.output,) if (run.path / name).is_dir()]
        if not there:
            continue
        entry = entries.get(stage.name, {})
        settings = described(run.made_with(stage.name, dump_recipe(context.asked)), stage.sections) or "the same settings"
        took = f" in {duration(entry['seconds'])}" if "seconds" in entry else ""
        lines.append(
            f"{' and '.join(there)} will be replaced: trained{took} with {settings}. To keep it, stop now (Ctrl-C) and give this "
            f"run another name: {run.another_name}"
        )
    return lines
