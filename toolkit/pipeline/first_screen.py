"""The first screen of a run: what will happen, with its arithmetic, before any weights are read."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.markup import escape

from toolkit.cuts.shape import ModelShape, shaped_meta_model
from toolkit.moe import find_blocks, sizes
from toolkit.moe.load import resolve_dtype
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.manifest import git_commit
from toolkit.pipeline.recipe_changes import described
from toolkit.pipeline.stage import Stage
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say, world_size
from toolkit.runtime.formatting import amount
from toolkit.runtime.progress import duration

SHOWN = ("torch", "transformers", "trl", "deepspeed")


def first_screen(context: RunContext, planned: Sequence[Stage], reasons: Mapping[str, str]) -> None:
    """`reasons`: by a stage's name why it must run, empty where it is done. Prints on rank 0; call it on every rank."""
    recipe, config, model = context.recipe, context.config, context.meta_model
    blocks, (keep, active, _) = find_blocks(model), context.budget
    shape = ModelShape(experts=keep, experts_per_token=active)
    before, after = sizes(model), sizes(shaped_meta_model(config, shape))
    experts = " → ".join(map(str, [blocks[0].expert_count, *(recipe.pruning.schedule or [keep])]))
    facts = {
        "model": f"{recipe.model.path} ({config.model_type}): {amount(before.parameters)} → {amount(after.parameters)} "
        f"parameters, {before.parameters / after.parameters:.2f} times smaller",
        "experts": f"{experts} in each of {len(blocks)} blocks, {active} active per token, by {recipe.pruning.criterion}",
        "task": recipe.task.name,
        "machine": machine(recipe, config),
        "versions": versions(),
        "results": str(context.directory.path),
    }
    say(f"[bold]{recipe.name}[/]")
    for name, value in facts.items():
        say(f"  [bold]{name:<10}[/]{escape(value)}")
    say()
    for stage in planned:
        work = stage.outlook() if reasons[stage.name] else "done already"
        say(f"{'' if reasons[stage.name] else '[dim]'}  {stage.name:<20}{escape(work)}".rstrip())
    for line in replaced_models(context, [stage for stage in planned if reasons[stage.name]]):
        say(f"\n[bold yellow]note:[/] {escape(line)}")
    say()


def machine(recipe: Recipe, config: object) -> str:
    """ "2 ranks on CPU, float32 (auto: no GPU)"."""
    gpu = torch.cuda.is_available()
    ranks = f"{world_size()} rank{'s' * (world_size() > 1)}"
    where = f"{ranks} on CPU" if not gpu else f"{ranks}, {torch.cuda.get_device_name()} each"
    dtype = str(resolve_dtype(recipe.model.dtype, config) or "the checkpoint's own numbers").removeprefix("torch.")
    if recipe.model.dtype == "auto":
        dtype += " (auto: the checkpoint's own)" if gpu else " (auto: no GPU)"
    return f"{where}, {dtype}"


def versions() -> str:
    try:
        ours = version("pollard-moe")  # `pollard` is another project on the package index
    except PackageNotFoundError:
        ours = "(not installed)"
    commit = git_commit()
    theirs = ", ".join(f"{package} {version(package)}" for package in SHOWN)
    return f"pollard {ours}{f' ({commit[:7]})' if commit else ''}, {theirs}"


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
        settings = described(run.made_with(stage.name, dump_recipe(context.recipe)), stage.sections) or "the same settings"
        took = f" in {duration(entry['seconds'])}" if "seconds" in entry else ""
        lines.append(
            f"{' and '.join(there)} will be replaced: trained{took} with {settings}. To keep it, stop now (Ctrl-C) and give this "
            f"run another name: {run.another_name}"
        )
    return lines
