"""Whether examples and model fit together: token counts against the context, token ids against the embedding.

A tokenizer may have tokens for which the model has no embedding: they were added, and the model was not resized.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError, first_of
from toolkit.tasks.example import Example
from toolkit.tasks.prompts import encode


class LengthSummary(NamedTuple):
    shortest: int
    median: int
    percentile_95: int
    longest: int


class Lengths(NamedTuple):
    """Token counts of a split."""

    prompt: LengthSummary | None  # None without examples
    completion: LengthSummary | None
    whole: list[int]  # of each example, prompt and completion
    prompts: list[int]  # of each example, the prompt alone

    def longer_than(self, limit: int) -> int:
        return sum(length > limit for length in self.whole)


def lengths_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Lengths:
    encoded = [encode(tokenizer, example) for example in examples]
    prompts = [e.prompt_length for e in encoded]
    whole = [len(e.input_ids) for e in encoded]
    return Lengths(
        _summary(prompts), _summary([all_ - prompt for all_, prompt in zip(whole, prompts, strict=True)]), whole, prompts
    )


class ContextFit(NamedTuple):
    """How many texts fit into a model's context."""

    texts: int
    beyond: int  # longer than the context themselves
    without_room: int  # fit, but not together with the new tokens: their answers may be cut


def context_fit(lengths: Sequence[int], context: int, new_tokens: int = 0) -> ContextFit:
    """Compares the texts' token counts with the context length, with `new_tokens` to be written behind each."""
    beyond = sum(length > context for length in lengths)
    return ContextFit(len(lengths), beyond, sum(length + new_tokens > context for length in lengths) - beyond)


def _summary(lengths: Sequence[int]) -> LengthSummary | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return LengthSummary(ordered[0], ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1])


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id, including added tokens, plus one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, rows: int, data: Iterable[tuple[str, Sequence[int]]], path: str
) -> str | None:
    """Raises PollardError where `data` (where each text comes from, and its tokens) has tokens from number `rows` on.

    Returns a sentence where the tokenizer has such tokens and the data has none: published models are like that. Reads `data`
    only where the tokenizer has more tokens than the model `path` has rows in its embedding.
    """
    size = vocabulary_size(tokenizer)
    if size <= rows:
        return None
    used: dict[int, str] = {}
    for where, tokens in data:
        for token in tokens:
            if token >= rows:
                used.setdefault(token, where)
    both = f"The tokenizer of {path} has {size:,} tokens, and the model's embedding has {rows:,} rows (vocab_size)"
    if not used:
        return f"{both}: the data uses none of those beyond it."
    faults = [f"  {tokenizer.convert_ids_to_tokens(token)!r} (number {token:,}) in {where}" for token, where in used.items()]
    raise PollardError(
        f"{both}. The data uses {len(used):,} of those that have none:\n{first_of(faults, 3)}\n"
        f"Enlarge the model for its tokenizer (model.resize_token_embeddings({size}), trained and saved), or give it the "
        "tokenizer that it was trained with.",
        code="tokenizer.beyond-vocabulary",
    )
