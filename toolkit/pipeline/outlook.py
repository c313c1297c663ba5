"""Parts of the lines that stages have on the first screen: numbers that are known before any weights are read."""

from typing import Literal

import torch

from toolkit.estimate import DataSize
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_on_machine import trainer_settings
from toolkit.runtime.distributed import world_size


def training_outlook(context: RunContext, data: DataSize) -> str:
    """ "6 steps × 8 examples (2 × 2 accumulated × 2 ranks) = 48: 1.0 times the 48 there are; full, ZeRO 2"."""
    recipe, ranks = context.recipe, world_size()
    trainer = trainer_settings(recipe, torch.cuda.is_available())
    steps, per_step = trainer.steps(data.examples, ranks), trainer.examples_per_step(ranks)
    factors = [f"{trainer.micro_batch}", *([f"{trainer.accumulation} accumulated"] if trainer.accumulation > 1 else [])]
    factors += [f"{ranks} ranks"] if ranks > 1 else []
    product = f" ({' × '.join(factors)})" if len(factors) > 1 else ""
    line = f"{examples_or_all(steps)} steps × {per_step:,} examples{product}"
    if steps is not None and data.examples:
        line += f" = {steps * per_step:,}: {steps * per_step / data.examples:.1f} times the {data.examples:,} there are"
    return f"{line}; {recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}"


def observation_outlook(context: RunContext) -> str:
    """ "8 examples × about 55 tokens = 441, batches of 4 → 2, over 2 ranks 1 each"."""
    data = context.data_sizes.calibration
    return f"{tokens_read(data)}, {batches(data.examples, context.recipe.calibration.batch_size)}"


def tokens_read(data: DataSize) -> str:
    if data.examples is None:
        return "all examples"
    about = "about" if data.measured else "at most"
    return f"{data.examples:,} examples × {about} {data.mean:,.0f} tokens = {data.tokens:,}"


def batches(examples: int | None, size: int | Literal["auto"]) -> str:
    if size == "auto":  # what memory has room for is known once the model is there
        return "as many at a time as memory has room for"
    if examples is None:
        return f"batches of {size}"
    count, ranks = -(-examples // size), world_size()
    shared = f", over {ranks} ranks {-(-count // ranks):,} each" if ranks > 1 else ""
    return f"batches of {size} → {count:,}{shared}"


def examples_or_all(examples: int | None) -> str:
    return "all" if examples is None else f"{examples:,}"
