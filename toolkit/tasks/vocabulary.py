"""Tokens that the tokenizer writes and the model has no embedding for: it was given tokens, and the model was not resized."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError, first_of


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number of a token, added ones too, plus one."""
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
        "tokenizer that it was trained with."
    )
