"""How much data a recipe reads: counted and tokenized where data and tokenizer lie on this machine, else bounded.

Nothing is fetched. Of hub data the number of examples is what the recipe or the task's preset says, and every example
counts as `max_length` tokens: an upper bound.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TrainingSourceRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import training_sources
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache, Example, Task, encode, encode_prompt

SAMPLE = 256  # examples that are tokenized to know the others' lengths

Tokenize = Callable[[PreTrainedTokenizerBase, Example], tuple[int, int]]  # an example's tokens, and those of its completion


@dataclass(frozen=True)
class DataSize:
    """`examples` of `mean` tokens, at most `longest`; `examples` is None where nobody knows it before the data is there.

    `completion`: tokens that the loss counts, per example; all of them where that is not known.
    """

    examples: int | None
    mean: float
    longest: int
    measured: bool
    completion: float | None = None

    @property
    def tokens(self) -> int | None:
        return None if self.examples is None else round(self.examples * self.mean)

    @property
    def counted(self) -> float:
        return self.mean if self.completion is None else self.completion

    def limited(self, examples: int | None) -> "DataSize":
        """The first or a sample of so many."""
        number = self.examples if examples is None else min(examples, self.examples or examples)
        return replace(self, examples=number)

    def times(self, number: int) -> "DataSize":
        """Every example so many times."""
        return replace(self, examples=None if self.examples is None else number * self.examples)


@dataclass(frozen=True)
class DataSizes:
    """What each stage reads; of `evaluation` the prompts, and of `answers` those that the original answers, each as often as
    it does (None: it answers none)."""

    calibration: DataSize
    training: DataSize
    evaluation: DataSize
    answers: DataSize | None


def data_sizes(recipe: Recipe, data: DataCache | None = None) -> DataSizes:
    """Raises PollardError for local data that cannot be read."""
    data = data or DataCache()
    task, settings, tokenizer = data.task(recipe.task), recipe.calibration, _local_tokenizer(recipe.model.path)
    sources = training_sources(recipe)
    if settings.data:
        number = sum(source.examples or settings.examples for source in settings.data)
        calibration = DataSize(number, settings.max_length, settings.max_length, False)
    else:
        calibration = _of(task, "train", tokenizer, _whole, settings.max_length).limited(settings.examples)
    asked = [_asked(recipe, source, tokenizer, data) for source in sources if source.self_generated]
    return DataSizes(
        calibration=calibration,
        training=_mixed([_source(recipe, source, tokenizer, data) for source in sources], [source.weight for source in sources]),
        evaluation=_of(task, recipe.evaluation.split, tokenizer, _prompt, recipe.finetuning.max_length).limited(
            recipe.evaluation.examples
        ),
        answers=_mixed(asked, [None] * len(asked)) if asked else None,
    )


def _source(recipe: Recipe, source: TrainingSourceRecipe, tokenizer: PreTrainedTokenizerBase | None, data: DataCache) -> DataSize:
    """One part of the training data."""
    longest, limit = recipe.finetuning.max_length, source.examples or recipe.finetuning.examples
    if source.text:  # in pieces: how many, only reading it would tell
        return DataSize(limit, longest, longest, False)
    if source.self_generated:  # at most: all of them right
        asked, new = _asked(recipe, source, tokenizer, data), recipe.evaluation.max_new_tokens
        return DataSize(asked.examples, min(asked.mean + new, longest), min(asked.longest + new, longest), False, new)
    return _of(data.task(source.task or recipe.task), "train", tokenizer, _whole, longest).limited(limit)


def _asked(recipe: Recipe, source: TrainingSourceRecipe, tokenizer: PreTrainedTokenizerBase | None, data: DataCache) -> DataSize:
    """The prompts that the original answers, each as often as it does."""
    prompts = _of(data.task(source.task or recipe.task), "train", tokenizer, _prompt, recipe.finetuning.max_length)
    return prompts.limited(source.examples or recipe.finetuning.examples).times(source.samples)


def _mixed(parts: Sequence[DataSize], weights: Sequence[float | None]) -> DataSize:
    """All parts together; of each its share by weight, as many as the scarcest allows, as recovery mixes them."""
    if len(parts) == 1:
        return parts[0]
    longest, measured = max(part.longest for part in parts), all(part.measured for part in parts)
    numbers = [part.examples for part in parts if part.examples is not None]
    if len(numbers) < len(parts):
        return DataSize(None, max(part.mean for part in parts), longest, measured, max(part.counted for part in parts))
    shares = [float(weight) for weight in weights if weight]
    if shares:
        total = min(number * sum(shares) / share for number, share in zip(numbers, shares, strict=True))
        numbers = [math.floor(total * share / sum(shares) + 1e-9) for share in shares]
    examples = sum(numbers)
    mean, counted = (
        sum(number * size for number, size in zip(numbers, sizes, strict=True)) / max(examples, 1)
        for sizes in ([part.mean for part in parts], [part.counted for part in parts])
    )
    return DataSize(examples, mean, longest, measured, counted)


def _of(
    task: Task, split: Literal["train", "dev", "test"], tokenizer: PreTrainedTokenizerBase | None, tokens: Tokenize, bound: int
) -> DataSize:
    stored: Literal["train", "test"] = "test" if split == "test" else "train"  # dev is carved from train
    if not task.is_local(stored):
        return DataSize(task.known_size(split), bound, bound, False)
    examples = task.examples(split)
    if tokenizer is None:
        return DataSize(len(examples), bound, bound, False)
    chosen = random.Random(0).sample(examples, min(SAMPLE, len(examples)))
    fitting = [lengths for example in chosen if (lengths := tokens(tokenizer, example))[0] <= bound]  # longer ones are left out
    if not fitting:
        return DataSize(len(examples), bound, bound, False)
    whole, completion = zip(*fitting, strict=True)
    number = round(len(examples) * len(fitting) / len(chosen))
    return DataSize(number, sum(whole) / len(fitting), max(whole), True, sum(completion) / len(fitting))


def _whole(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, int]:
    encoded = encode(tokenizer, example)
    return len(encoded.input_ids), len(encoded.input_ids) - encoded.prompt_length


def _prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, int]:
    return len(encode_prompt(tokenizer, example)), 0


def _local_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint folder; None where there is none (a lone config.json is enough to plan with)."""
    if not Path(path).is_dir():
        return None
    try:
        return load_tokenizer(path)
    except PollardError:
        return None
