"""What each stage will do, in numbers that are known before any weights are read."""

from typing import Literal

import torch

from toolkit.estimate import DataSize, DataSizes, TrainerSettings
from toolkit.recipe.schema import Recipe
from toolkit.recovery.trainer_defaults import trainer_defaults
from toolkit.runtime.distributed import world_size


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
