"""How long the examples of a split are, in tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.tasks.example import Example
from toolkit.tasks.prompts import encode


class Spread(NamedTuple):
    least: int
    median: int
    most_of: int  # 95 % are at most so long
    most: int


class Lengths(NamedTuple):
    """`whole` holds prompt + completion of each example and `prompts` the prompt alone, to count those above a limit; the
    spreads are None without any."""

    prompt: Spread | None
    completion: Spread | None
    whole: list[int]
    prompts: list[int]

    def longer_than(self, limit: int) -> int:
        return sum(length > limit for length in self.whole)


def lengths_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Lengths:
    encoded = [encode(tokenizer, example) for example in examples]
    prompts = [e.prompt_length for e in encoded]
    whole = [len(e.input_ids) for e in encoded]
    return Lengths(
        _spread(prompts), _spread([all_ - prompt for all_, prompt in zip(whole, prompts, strict=True)]), whole, prompts
    )


class ContextFit(NamedTuple):
    """How many texts there are, how many are longer than the context themselves, and of how many the answer may be cut: they
    fit, but not together with the new tokens."""

    texts: int
    beyond: int
    without_room: int


def context_fit(lengths: Sequence[int], context: int, new_tokens: int = 0) -> ContextFit:
    """Texts of so many tokens against a context, with `new_tokens` to be written behind each."""
    beyond = sum(length > context for length in lengths)
    return ContextFit(len(lengths), beyond, sum(length + new_tokens > context for length in lengths) - beyond)


def _spread(lengths: Sequence[int]) -> Spread | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return Spread(ordered[0], ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1])
