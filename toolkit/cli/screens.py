"""The first screen of a run: what will happen, with its arithmetic, before any weights are read. And the last one: what was
made, where it is, and what to do next."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape

from toolkit.cuts.model_summary import pruned_meta_model
from toolkit.cuts.plan import Plan
from toolkit.estimate import DataSize, DataSizes, TrainerSettings
from toolkit.moe import checkpoint_bytes, find_blocks, load_config, meta_model, sizes
from toolkit.moe.load import resolve_dtype
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.manifest import git_commit
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, replaced_models, stale_parts, why_model_stale
from toolkit.pipeline.stages.core import budget
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.trainer_defaults import trainer_defaults
from toolkit.runtime.distributed import is_main, say, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import amount, size
from toolkit.runtime.progress import duration
from toolkit.runtime.typed_command import program_path

SHOWN = ("torch", "transformers", "trl", "deepspeed")


def first_screen(recipe: Recipe, run: RunDirectory, planned: Sequence[tuple[str, str]]) -> None:
    """`planned`: per stage its name and why it must run, empty where it is done. Prints on rank 0; call it on every rank."""
    config = load_config(recipe.model.path, recipe.model.revision)
    model = meta_model(config)
    blocks, (keep, active, _) = find_blocks(model), budget(recipe)
    before, after = sizes(model), sizes(pruned_meta_model(config, keep, active))
    experts = " → ".join(map(str, [blocks[0].expert_count, *(recipe.pruning.schedule or [keep])]))
    facts = {
        "model": f"{recipe.model.path} ({config.model_type}): {amount(before.parameters)} → {amount(after.parameters)} "
        f"parameters, {before.parameters / after.parameters:.2f} times smaller",
        "experts": f"{experts} in each of {len(blocks)} blocks, {active} active per token, by {recipe.pruning.criterion}",
        "task": recipe.task.name,
        "machine": machine(recipe, config),
        "versions": versions(),
        "results": str(run.path),
    }
    say(f"[bold]{recipe.name}[/]")
    for name, value in facts.items():
        say(f"  [bold]{name:<10}[/]{escape(value)}")
    say()
    data = data_sizes(recipe)
    for stage, reason in planned:
        work = arithmetic(stage, recipe, data) if reason else "done already"
        say(f"{'' if reason else '[dim]'}  {stage:<20}{escape(work)}".rstrip())
    for line in replaced_models(run, recipe, [stage for stage, reason in planned if reason]):
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


def arithmetic(stage: str, recipe: Recipe, data: DataSizes) -> str:
    """What a stage will do, in numbers that are known before any weights are read."""
    kind, _, which = stage.partition("/")
    if kind in ("calibrate", "skip"):
        return f"{_tokens(data.calibration)}, {_batches(data.calibration.examples, recipe.calibration.batch_size)}"
    if kind == "evaluate":
        asked = data.evaluation.examples
        new = f"at most {recipe.evaluation.max_new_tokens:,} new tokens each"
        drawn = f" × {recipe.evaluation.samples} answers" if recipe.evaluation.samples > 1 else ""
        return f"{_number(asked)} questions{drawn}, {_batches(asked, recipe.evaluation.batch_size)}; {new}"
    if kind in ("recover", "control"):
        return _training(recipe, data.training)
    if kind == "answers" and data.answers:
        return f"{_number(data.answers.examples)} answers drawn, at most {recipe.evaluation.max_new_tokens:,} new tokens each"
    if kind == "teacher":
        return f"{_tokens(data.training)}"
    if kind == "fidelity":
        return f"{recipe.evaluation.fidelity:,} gold answers, read once; nothing is generated"
    if kind == "harness":
        return f"lm-evaluation-harness: {', '.join(recipe.evaluation.harness or [])}"
    if kind == "rounds":
        return f"prune to {which} experts and recover: {_training(recipe, data.training)}"
    return {"select": f"keep {recipe.pruning.keep}", "prune": "no forward pass: tensors are copied", "report": "one page"}.get(
        kind, ""
    )


def _training(recipe: Recipe, data: DataSize) -> str:
    trainer = TrainerSettings(trainer_defaults(torch.cuda.is_available(), recipe) | recipe.finetuning.trainer)
    ranks, steps = world_size(), trainer.steps(data.examples, world_size())
    at_once = trainer.micro_batch * trainer.accumulation * ranks
    factors = [f"{trainer.micro_batch}", *([f"{trainer.accumulation} accumulated"] if trainer.accumulation > 1 else [])]
    factors += [f"{ranks} ranks"] if ranks > 1 else []
    product = f" ({' × '.join(factors)})" if len(factors) > 1 else ""
    said = f"{_number(steps)} steps × {at_once:,} examples{product}"
    if steps is not None and data.examples:
        said += f" = {steps * at_once:,}: {steps * at_once / data.examples:.1f} times the {data.examples:,} there are"
    return f"{said}; {recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}"


def _tokens(data: DataSize) -> str:
    if data.examples is None:
        return "all examples"
    about = "about" if data.measured else "at most"
    return f"{data.examples:,} examples × {about} {data.mean:,.0f} tokens = {data.tokens:,}"


def _batches(number: int | None, size: int | Literal["auto"]) -> str:
    if size == "auto":  # what memory has room for is known once the model is there
        return "as many at a time as memory has room for"
    if number is None:
        return f"batches of {size}"
    batches, ranks = -(-number // size), world_size()
    shared = f", over {ranks} ranks {-(-batches // ranks):,} each" if ranks > 1 else ""
    return f"batches of {size} → {batches:,}{shared}"


def _number(number: int | None) -> str:
    return "all" if number is None else f"{number:,}"


RUN_OUTPUTS = {  # what a run leaves that people look for: by the stage that makes it
    "recover": ("recovered", "the pruned model, fine-tuned: a stock transformers checkpoint"),
    "prune": ("pruned", "the pruned model"),
    "control": ("control", "the original, fine-tuned alike"),
    "select": ("plan.json", "which experts stay"),
    "report": ("report.html", "the report: one page, for a browser"),
}


def last_screen(run: RunDirectory, seconds: float, again: str) -> None:
    """What there is, what of it is stale, and what to do next, on rank 0. `again`: the command that does the stages that are
    left where a run was asked for its first stages only."""
    if not is_main():
        return
    there = {}
    for stage, (name, what) in RUN_OUTPUTS.items():
        path = run.path / name
        if path.exists() and not run.why_stale(stage):
            there[path] = f"{what}, {_bytes(path)}" if path.is_dir() else what
    say()
    say(f"[bold]Done[/] in {duration(seconds)}")
    _columns(there)
    if stale := {run.path / part: found.why for found in stale_parts(run) for part in found.parts}:
        say("[bold yellow]Stale[/] (of other settings: not in the report, not to be compared)")
        _columns(stale)
    say("[bold]Next[/]")
    _columns(_commands(run, again))


def _commands(run: RunDirectory, again: str) -> dict[str, str]:
    """What can be done with what is current."""
    current, program, found = run.done(), program_path("pollard"), {}
    best = next((role for role in BEST_FIRST if (run.path / role).exists() and not why_model_stale(run, role)), None)
    where = shlex.quote(str(run.path))
    if "report" not in current:
        found[again] = "the stages that are left"
    if best:
        found[f"{program} chat {where}"] = "ask the original and the smaller model side by side"
    judged = next((role for role in BEST_FIRST if f"evaluate/{role}" in current), None)
    if judged and "evaluate/original" in current:
        found[f"{program} compare {where}/{judged} {where}/original"] = "question by question"
    if "report" in current and (keeps := _keeps_to_try(run)):
        found[f"{program} sweep {where}/{run.recipe.name} pruning.keep={keeps}"] = "how few experts would do?"
    return found


def _keeps_to_try(run: RunDirectory) -> str:
    """Three quarters, half and a quarter of the experts, those that the model's routers can do; empty where a sweep cannot be."""
    recipe = load_recipe(run.recipe)
    if recipe.pruning.schedule:
        return ""
    experts, possible = next(iter(Plan.load(run.plan).blocks.values())).experts, []
    for keep in dict.fromkeys(experts * share // 8 for share in (6, 4, 2)):
        with suppress(PollardError):
            if keep:
                budget(recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"keep": keep})}))
                possible.append(str(keep))
    return ",".join(possible)


def _columns(said: Mapping[Any, str]) -> None:
    width = max(len(str(left)) for left in said) if said else 0
    for left, right in said.items():
        say(f"  {escape(str(left).ljust(width))}  [dim]{escape(right)}[/]")


def _bytes(folder: Path) -> str:
    return size(checkpoint_bytes(folder)) if folder.is_dir() else ""
