"""How much data a recipe reads: counted and tokenized where data and tokenizer lie on this machine, else bounded.

Nothing is fetched. Of hub data the number of examples is what the recipe or the task's preset says, and every example
counts as `max_length` tokens: an upper bound.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from toolkit.errors import PollardError
from toolkit.moe import load_tokenizer
from toolkit.recipe import Recipe
from toolkit.tasks import Example, Task, encode, encode_prompt
from toolkit.tasks.sources import is_local

SAMPLE = 256  # examples that are tokenized to know the others' lengths

Tokenize = Callable[[PreTrainedTokenizerBase, Example], int]


@dataclass(frozen=True)
class Amount:
    """`examples` of `mean` tokens, at most `longest`; `examples` is None where nobody knows it before the data is there."""

    examples: int | None
    mean: float
    longest: int
    measured: bool

    @property
    def tokens(self) -> int | None:
        return None if self.examples is None else round(self.examples * self.mean)

    def limited(self, examples: int | None) -> "Amount":
        """The first or a sample of so many."""
        number = self.examples if examples is None else min(examples, self.examples or examples)
        return Amount(number, self.mean, self.longest, self.measured)


@dataclass(frozen=True)
class Amounts:
    """What each stage reads; of `evaluation` the prompts."""

    calibration: Amount
    training: Amount
    evaluation: Amount


def amounts(recipe: Recipe) -> Amounts:
    """Raises PollardError for local data that cannot be read."""
    task, settings, tokenizer = Task(recipe.task), recipe.calibration, _local_tokenizer(recipe.model.path)
    bound = recipe.finetuning.max_length
    training = _of(task, "train", tokenizer, _whole, bound)
    if settings.data:
        number = sum(source.examples or settings.examples for source in settings.data)
        calibration = Amount(number, settings.max_length, settings.max_length, False)
    else:
        calibration = _of(task, "train", tokenizer, _whole, settings.max_length).limited(settings.examples)
    return Amounts(
        calibration=calibration,
        training=training.limited(recipe.finetuning.examples),
        evaluation=_of(task, recipe.evaluation.split, tokenizer, _prompt, bound).limited(recipe.evaluation.examples),
    )


def _of(
    task: Task, split: Literal["train", "dev", "test"], tokenizer: PreTrainedTokenizerBase | None, tokens: Tokenize, bound: int
) -> Amount:
    stored: Literal["train", "test"] = "test" if split == "test" else "train"  # dev is carved from train
    source = task.sources((stored,))[stored]
    if not is_local(source):
        return Amount(task.known_size(split), bound, bound, False)
    examples = task.examples(split)
    if tokenizer is None:
        return Amount(len(examples), bound, bound, False)
    chosen = random.Random(0).sample(examples, min(SAMPLE, len(examples)))
    fitting = [length for example in chosen if (length := tokens(tokenizer, example)) <= bound]  # longer ones are left out
    if not fitting:
        return Amount(len(examples), bound, bound, False)
    return Amount(round(len(examples) * len(fitting) / len(chosen)), sum(fitting) / len(fitting), max(fitting), True)


def _whole(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    return len(encode(tokenizer, example).input_ids)


def _prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    return len(encode_prompt(tokenizer, example))


def _local_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint folder; None where there is none (a lone config.json is enough to plan with)."""
    if not Path(path).is_dir():
        return None
    try:
        return load_tokenizer(path)
    except PollardError:
        return None
