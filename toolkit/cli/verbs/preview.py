"""`pollard preview RECIPE`: the task as the model sees it."""

import argparse

from toolkit.cli.verbs.verb import Verb, add_recipe_arguments
from toolkit.recipe.file import load_recipe

SPLITS = ("train", "dev", "test")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--examples", type=int, default=2, help="how many to show (default: 2)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="whose (default: test)")


def run(arguments: argparse.Namespace) -> None:
    """Reads the task, the tokenizer and the configuration, and no weights. What does not fit the model comes last."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from rich.markup import escape

    from toolkit.moe import load_config, load_tokenizer
    from toolkit.moe.limits import context_length
    from toolkit.pipeline.data_checks import limit_checks, rendering_checks
    from toolkit.report.inspection import show_examples, show_lengths
    from toolkit.runtime.distributed import say
    from toolkit.runtime.errors import Mistakes
    from toolkit.tasks import Task
    from toolkit.tasks.lengths import lengths_of

    task = Task(recipe.task)
    splits = {split: task.examples(split) for split in SPLITS}  # type: ignore[arg-type]
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)
    template = "the model's chat template" if tokenizer.chat_template and task.preset.chat else "plain text"
    shots = (
        f", {task.preset.shots} solved example{'s' * (task.preset.shots > 1)} before each question" if task.preset.shots else ""
    )
    stops = f", stops at {', '.join(map(repr, task.stop))}" if task.stop else ""
    say(f"[bold]{recipe.task.name}[/]: {template}{shots}; judged by {task.preset.scorer}{stops}\n")
    mistakes = Mistakes()
    notes = [note for check in rendering_checks(recipe, tokenizer) for note in mistakes.collect(check) or ()]
    mistakes.raise_all()  # what the template refuses cannot be shown
    show_examples(tokenizer, splits[arguments.split][: arguments.examples])
    limits = {f"{name}.max_length": getattr(recipe, name).max_length for name in ("calibration", "finetuning")}
    config = mistakes.collect(lambda: load_config(recipe.model.path, recipe.model.revision))
    context = context_length(config, tokenizer) if config is not None else None
    if context:
        limits[str(context)] = context.tokens
    show_lengths({split: lengths_of(tokenizer, examples) for split, examples in splits.items()}, limits)
    for check in limit_checks(recipe, config, tokenizer) if config is not None else ():
        notes += mistakes.collect(check) or []
    for note in notes:
        say(f"[bold]note[/] {escape(note)}")
    mistakes.raise_all()


PREVIEW = Verb(
    "preview",
    "the task's examples exactly as the model sees them, and how long they are; reads no weights",
    "pollard preview recipes/playground.yaml --split train --examples 3",
    arguments,
    run,
)
