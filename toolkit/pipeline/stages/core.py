"""What each stage does: files in, files out, on every rank."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from toolkit.calibration import calibrate_sources
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, mix
from toolkit.evaluation import evaluate
from toolkit.moe import StreamedModel, check_prunable, checkpoint_bytes, find_blocks, load_config, load_tokenizer, meta_model
from toolkit.moe.placement import shard_batches, with_layers
from toolkit.moe.tokenizer import longer_than_context
from toolkit.pipeline.rounds import composed_plan, early_rounds
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stages.alternatives import write_alternatives
from toolkit.pipeline.stages.calibration_data import read_source, sources_of
from toolkit.recipe.schema import Recipe
from toolkit.report import show, write_report
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.selection import experts_to_activate, experts_to_keep, kept_unobserved, select
from toolkit.tasks import Encoded, Task, padded_batches


class Budget(NamedTuple):
    """What the numbers of a recipe mean for its model."""

    keep: int
    experts_per_token: int
    fewer_active: bool  # than in the original


def budget(recipe: Recipe) -> Budget:
    """From the model's configuration alone; raises PollardError where its routers cannot do what the recipe asks."""
    blocks = find_blocks(meta_model(load_config(recipe.model.path, recipe.model.revision)))
    now = blocks[0].experts_per_token
    keep = experts_to_keep(recipe.pruning.keep, blocks[0].expert_count, blocks[0].groups or 1)
    active = experts_to_activate(recipe.pruning.experts_per_token, keep, now)
    check_prunable(blocks, keep, active)
    return Budget(keep, active, active < now)


def search_of(recipe: Recipe) -> list[Any]:
    """What of the recipe decides the reconstruction search: nothing where the criterion needs none; one progressive
    search serves one `keep`, a layerwise one all."""
    pruning = recipe.pruning
    if pruning.criterion != "reconstruction":
        return []
    return [pruning.mode, *([pruning.keep] if pruning.mode == "progressive" else [])]


def calibrate_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """The original model over a sample of training examples -> statistics."""
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)
    settings = recipe.calibration
    keep, active, fewer_active = budget(recipe)
    if fewer_active:
        say(f"  watched with {active} expert{'s' * (active > 1)} per token, as the pruned model will have")
    mode = recipe.pruning.mode if search_of(recipe) else False

    def beyond(encoded: Iterable[Encoded]) -> int:
        config = load_config(recipe.model.path, recipe.model.revision)
        return longer_than_context(config, tokenizer, (len(e.input_ids) for e in encoded))

    def watch(model: PreTrainedModel | StreamedModel) -> None:
        answering = model if isinstance(model, PreTrainedModel) and settings.self_generated else None
        sources, watched = [read_source(source, recipe, tokenizer, answering) for source in sources_of(recipe)], []
        for source in sources:
            named = f"{source.name}: " if len(sources) > 1 else ""
            tokens = sum(len(e.input_ids) for e in source.encoded)
            say(f"  {named}{len(source.encoded):,} examples, {tokens:,} tokens{source.told}")
            batches = padded_batches(source.encoded, settings.batch_size, int(tokenizer.pad_token_id))
            watched.append(shard_batches(model, batches))
        parts = calibrate_sources(model, watched, mode, keep, active)
        statistics = mix(parts, [source.name for source in sources], [source.weight for source in sources])
        if mode:  # subsets are judged on all sources' batches together
            statistics.about["reconstruction"] = parts[0].about["reconstruction"]
        statistics.about |= {
            "model": recipe.model.path, "task": recipe.task.name, "seed": recipe.seed, "fingerprint": fingerprint,
            "examples": sum(len(source.encoded) for source in sources),
            "beyond_context": beyond(e for source in sources for e in source.encoded),
            "left_out": sum(source.left_out for source in sources), "not_kept": sum(source.not_kept for source in sources),
            "bad_lines": sum(source.bad_lines for source in sources),
        }  # fmt: skip
        on_main(lambda: statistics.save(run.statistics))

    in_one_piece = "the reconstruction search routes by copies of the routers" if mode else None
    answering = "it answers the prompts itself" if settings.self_generated else None
    with_layers(recipe, watch, answering, in_one_piece)
    about = ExpertStatistics.load(run.statistics).about
    blocks = about["blocks"]
    idle = sum(len(block["unobserved"]) for block in blocks.values())
    say(f"  {len(blocks)} MoE blocks watched" + (f"; {idle} experts were never chosen" if idle else ""))
    tokens = sum(next(iter(blocks.values()))["tokens"].values())
    kept = ("examples", "left_out", "beyond_context", "not_kept", "bad_lines")
    return {"tokens": tokens} | {key: about[key] for key in kept}


def select_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Statistics -> plan."""

    def choose() -> None:
        statistics, pruning = ExpertStatistics.load(run.statistics), recipe.pruning
        _check_match(statistics, run)
        plan = select(
            statistics, pruning.criterion, pruning.keep, pruning.tokens, pruning.mode, recipe.seed, pruning.experts_per_token
        )
        plan.save(run.plan)
        if early_rounds(recipe):
            composed_plan(recipe, run).save(run.rounds / "plan.json")
        unobserved = kept_unobserved(statistics, plan)
        if unobserved:
            say(
                f"  [bold]{unobserved} kept experts were never chosen in calibration[/]: "
                f"the task uses fewer than {plan.keep} in some blocks."
            )
        experts = next(iter(plan.blocks.values())).experts
        active = f"{plan.experts_per_token} per token"
        say(f"  {experts} -> {plan.keep} experts ({active}) in each of {len(plan.blocks)} blocks, by {plan.criterion}")

    on_main(choose)
    return {}


def _check_match(statistics: ExpertStatistics, run: RunDirectory) -> None:
    """Raises PollardError where the statistics are not those that this run's calibration left."""
    theirs = run.read_manifest()["stages"].get("calibrate", {}).get("fingerprint")
    ours = statistics.about.get("fingerprint")
    if ours != theirs:
        raise PollardError(
            f"The statistics in {run.statistics} are not this run's: their fingerprint is {ours}, its calibration's is "
            f"{theirs}. Calibrate again (--fresh), or use them by hand: toolkit.select(toolkit.ExpertStatistics.load(…), …)."
        )


def prune_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Plan and original checkpoint -> pruned checkpoint, verified."""
    prune_checkpoint(recipe.model.path, Plan.load(run.plan), run.pruned, recipe.model.revision, overwrite=True)
    size = checkpoint_bytes(run.pruned)
    say(f"  {run.pruned}: {size / 2**20:,.1f} MiB")
    return {"checkpoint_bytes": size}


def recover_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Pruned checkpoint and training examples -> recovered checkpoint."""
    from toolkit.recovery.recover import recover  # takes seconds; a run that is done needs none of it

    plan = Plan.load(run.plan)
    if plan.experts_per_token == plan.keep and not recipe.finetuning.trainer.get("router_aux_loss_coef"):
        say("  every kept expert serves every token: a load-balancing loss would be constant, and is off")
    return {**recover(recipe, str(run.path.parent), "recovered", fingerprint, dev_accuracy(recipe))}


def control_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Original checkpoint and training examples -> control."""
    from toolkit.recovery.recover import recover

    return {**recover(recipe, str(run.path.parent), "control", fingerprint, dev_accuracy(recipe))}


def dev_accuracy(recipe: Recipe) -> Callable[[PreTrainedModel], float] | None:
    """Measures a model while it trains: the share of the dev slice that it answers rightly, on every rank. None where the
    recipe does not select by it."""
    if recipe.finetuning.select_by != "dev_accuracy":
        return None
    task, settings = Task(recipe.task), recipe.evaluation
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)

    def measure(model: PreTrainedModel) -> float:
        scores = evaluate(model, tokenizer, task, "dev", None, settings.batch_size, settings.max_new_tokens)
        scores.check()
        return scores.score

    return measure


def report_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Everything the run directory holds -> report.html, report.json and the table."""

    def write() -> dict[str, Any]:
        write_alternatives(run)
        return write_report(run.path)

    show(on_main(write))
    say(f"Report: {run.path / 'report.html'}")
    return {}
