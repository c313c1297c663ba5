"""What a model's configuration limits: how many tokens it reads at once, and which it has an embedding for.

"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "yarn", "factor": 4.0,
"original_max_position_embeddings": 32768}      -> 131,072: what the scaled rotary embedding reaches
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
NO_LIMIT = 10**9  # a tokenizer that knows none says 10^30


class ContextLength(NamedTuple):
    """The most tokens, prompt and answer together, and the key that says so."""

    tokens: int
    key: str

    def __str__(self) -> str:
        return f"the model's context of {self.tokens:,} tokens ({self.key})"


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> ContextLength | None:
    """None where there is no limit: without positions (Mamba, ALiBi) and without one that the tokenizer names.

    Scaled rotary embeddings reach as far as their factor says; a sliding window limits how far back a layer looks, not how
    long a text may be.
    """
    text = config.get_text_config()
    found = next(((name, getattr(text, name)) for name in NAMES if isinstance(getattr(text, name, None), int)), None)
    if any(getattr(part, "alibi", False) for part in (text, getattr(text, "attn_config", None))):
        found = None
    if found and found[1] > 0:
        name, tokens = found
        return ContextLength(max(tokens, _scaled(text, tokens)), text.attribute_map.get(name, name))
    stated = getattr(tokenizer, "model_max_length", NO_LIMIT)
    return ContextLength(int(stated), "the tokenizer's model_max_length") if 0 < stated < NO_LIMIT else None


def _scaled(config: Any, tokens: int) -> int:
    """How far the rotary embedding reaches by its own account; layers of different kinds may have different ones."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    reach = [tokens]
    for kind in kinds:
        factor, name = kind.get("factor") or 1.0, kind.get("rope_type", kind.get("type"))
        if name == "yarn":
            reach.append(int(factor * (kind.get("original_max_position_embeddings") or tokens)))
        elif name in ("linear", "dynamic"):
            reach.append(int(factor * tokens))
    return max(reach)


def longer_than_context(config: Any, tokenizer: PreTrainedTokenizerBase, lengths: Iterable[int]) -> int:
    """How many texts of so many tokens are longer than the model's context."""
    context = context_length(config, tokenizer)
    return sum(length > context.tokens for length in lengths) if context else 0


def embedding_rows(config: Any) -> int:
    """Tokens from this number on have no embedding."""
    return int(config.get_text_config().vocab_size)


def check_padding(config: Any) -> None:
    """Raises PollardError for a padding token that has no embedding: most families cannot even be built with it."""
    padding, rows = getattr(config.get_text_config(), "pad_token_id", None), embedding_rows(config)
    if isinstance(padding, int) and padding >= rows:
        raise PollardError(
            f"config.json: pad_token_id is {padding:,}, and the model's embedding has {rows:,} rows (vocab_size), numbered "
            "from 0. Give the number of a token that the model has (often eos_token_id), or null."
        )
