"""Verbs before a run, which read no weights: `pollard estimate`, `inspect` and `preview`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.verbs.verb import Verb, add_recipe_arguments
from toolkit.recipe.file import load_recipe
from toolkit.runtime.files import JsonObject

if TYPE_CHECKING:
    from toolkit.pipeline.context import RunContext

SPLITS = ("train", "dev", "test")


def add_estimate_arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe, and a machine to plan for: this one unless described."""
    parser.add_argument(
        "recipe", help="a YAML file, e.g. recipes/math.yaml; a folder with config.json alone will do as its model"
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.path=value", help="e.g. finetuning.zero=3")
    parser.add_argument("--gpus", type=int, help="on each node (default: those of this machine)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpu", help="their kind, e.g. a100 or h100: memory and speed")
    parser.add_argument("--gpu-memory", help="of each, e.g. 80G")
    parser.add_argument("--cpu-memory", help="RAM of each node, e.g. 512G (default: this machine's)")


def run_estimate(arguments: argparse.Namespace) -> Any:
    """Exit status 0 whether it fits or not: the last line says so."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from toolkit.cli.estimate_table import estimate_facts, show_estimate
    from toolkit.estimate import measure_cpu, resolve_machine
    from toolkit.pipeline.advice import advise
    from toolkit.pipeline.estimator import Estimator

    machine = resolve_machine(arguments.gpus, arguments.nodes, arguments.gpu, arguments.gpu_memory, arguments.cpu_memory)
    described = (arguments.gpus, arguments.gpu, arguments.gpu_memory, arguments.cpu_memory)
    if not machine.gpus and all(option is None for option in described):  # it is this machine: its speed can be measured
        machine = replace(machine, cpu=measure_cpu())
    estimator = Estimator(machine)
    estimate = estimator.estimate(recipe)
    advice = advise(estimator, recipe, estimate)
    if not arguments.json:
        show_estimate(estimate, advice)
    return estimate_facts(estimate, advice)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder with a transformers checkpoint, a hub id, or a plan: runs/math/plan.json")


def run_inspect(arguments: argparse.Namespace) -> Any:
    """A file is a plan: what it keeps, and the size of its model after each cut."""
    from toolkit.cuts import Plan, check_dense, check_plan, sizes_after_cuts
    from toolkit.cuts.model_summary import model_summary
    from toolkit.moe import checkpoint_bytes, load_config, meta_model, sizes
    from toolkit.report.inspection import (
        is_dense_form,
        plan_of_checkpoint,
        show_dense_model,
        show_model_summary,
        show_plan,
        show_pruned_by,
    )

    if not Path(arguments.model).is_file():
        pruned_by = plan_of_checkpoint(arguments.model)
        if not arguments.json:
            show_pruned_by(pruned_by)
        if is_dense_form(arguments.model):
            model = meta_model(load_config(arguments.model))
            size, family, stored = sizes(model), model.config.model_type, checkpoint_bytes(arguments.model)
            if not arguments.json:
                show_dense_model(size, family, stored)
            return {"pruned_by": pruned_by, "family": family, **size._asdict(), "checkpoint_bytes": stored}
        summary = model_summary(arguments.model)
        if not arguments.json:
            show_model_summary(summary)
        return {"pruned_by": pruned_by, **vars(summary)}
    plan = Plan.load(arguments.model)
    config = load_config(plan.model)
    check_plan(meta_model(config), plan)
    if plan.form == "dense":
        check_dense(config, plan)
    after = sizes_after_cuts(config, plan)
    if not arguments.json:
        show_plan(plan, after)
    return {"plan": plan, "sizes": after}


def add_preview_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--examples", type=int, default=2, help="how many to show (default: 2)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="whose (default: test)")


def run_preview(arguments: argparse.Namespace) -> Any:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from toolkit.pipeline.context import RunContext

    return preview(RunContext(recipe), arguments.split, arguments.examples, show=not arguments.json)


def preview(run: "RunContext", split: str, examples: int, show: bool) -> JsonObject:
    """Facts of the run's task, and with `show` the screen: so many examples of the split, and the lengths of all. Reads the task,
    the tokenizer and the configuration, and no weights. Conflicts with the model are reported last."""
    from rich.markup import escape

    from toolkit.moe.tokenizer import context_length
    from toolkit.pipeline.data_checks import limit_checks, rendering_checks
    from toolkit.report.inspection import example_facts, length_facts, show_examples, show_lengths
    from toolkit.runtime.distributed import say
    from toolkit.runtime.errors import Mistakes
    from toolkit.tasks.token_checks import lengths_of

    recipe, task = run.recipe, run.task
    splits = {name: task.examples(name) for name in SPLITS}  # type: ignore[arg-type]
    tokenizer = run.tokenizer
    template = "the model's chat template" if tokenizer.chat_template and task.preset.chat else "plain text"
    number = task.nearest or task.preset.shots
    which = "nearest" if task.nearest else "solved"
    shots = f", {number} {which} example{'s' * (number > 1)} before each question" if number else ""
    stops = f", stops at {', '.join(map(repr, task.stop))}" if task.stop else ""
    if show:
        say(f"[bold]{recipe.task.title}[/]: {template}{shots}; judged by {task.preset.scorer}{stops}\n")
    mistakes = Mistakes()
    notes = [note for check in rendering_checks(run) for note in mistakes.collect(check) or ()]
    mistakes.raise_all()  # what the template refuses cannot be shown
    shown = splits[split][:examples]
    if show:
        show_examples(tokenizer, shown)
    limits = {f"{name}.max_length": getattr(recipe, name).max_length for name in ("calibration", "finetuning")}
    config = mistakes.collect(lambda: run.config)
    context = context_length(config, tokenizer) if config is not None else None
    if context:
        limits[str(context)] = context.tokens
    lengths = {name: lengths_of(tokenizer, each) for name, each in splits.items()}
    if show:
        show_lengths(lengths, limits)
    for check in limit_checks(run) if config is not None else ():
        notes += mistakes.collect(check) or []
    if show:
        for note in notes:
            say(f"[bold]note[/] {escape(note)}")
    mistakes.raise_all()
    return {
        "task": recipe.task.title, "text": template, "shots": number, "scorer": task.preset.scorer, "stops": task.stop,
        "examples": [example_facts(tokenizer, example) for example in shown], "limits": limits,
        "lengths": {name: length_facts(each, limits) for name, each in lengths.items()}, "notes": notes,
    }  # fmt: skip


ESTIMATE = Verb(
    "estimate",
    "memory, time and disk of every stage, before anything runs; needs no GPU",
    "pollard estimate recipes/math.yaml --gpus 8 --gpu h100 --cpu-memory 1T",
    run_estimate,
    add_estimate_arguments,
)
INSPECT = Verb(
    "inspect",
    "what a model is made of, and its size with less of it; of a plan, its size after each cut; reads no weights",
    "pollard inspect mistralai/Mixtral-8x7B-v0.1",
    run_inspect,
    add_inspect_arguments,
)
PREVIEW = Verb(
    "preview",
    "the task's examples exactly as the model sees them, and how long they are; reads no weights",
    "pollard preview recipes/playground.yaml --split train --examples 3",
    run_preview,
    add_preview_arguments,
)
