"""What all prompts of an evaluation begin with, computed once: the same solved examples, or a chat template's system prompt.

    today's rows      [padding][shots][question 1]        with a shared prefix      [shots][padding][question 1]
                               [shots][a longer question]                           [shots][a longer question]

The keys and values of the shots are computed for one row; every batch begins with them, and only the questions pass through
the model. The padding then stands behind the shots, hidden by the mask, and positions count what the mask shows: to full
attention that is the same. It is not to a window that counts the padding as well, nor to a recurrent state, nor to positions
that do not follow the mask. So what the cache is made of must allow it, and one prompt is computed both ways before any other.

Shape legend: B rows, S positions, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

LEAST_TOKENS = 16  # a shorter prefix (what any template begins with) saves next to nothing
LEAST_PROMPTS = 4  # fewer cost less than the prefix and the prompt that is computed both ways
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the logits' range, between the two ways
HALF_TOLERANCE = 0.1  # in bfloat16 and float16, whose sums differ with the shape of a batch


@dataclass(frozen=True)
class CommonPrefix:
    """`tokens` that all prompts of an evaluation begin with; the `shortest` of these prompts, and the length of the `longest`.

    All prompts decide, not a batch's, a rank's, or those that a kill has left over: so none of these changes what is computed.
    """

    tokens: list[int]
    shortest: list[int]
    longest: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> "CommonPrefix | None":
        """At least one token short of every prompt. None where sharing does not pay."""
        if len(prompts) < LEAST_PROMPTS:
            return None
        first, last = min(map(list, prompts)), max(map(list, prompts))  # in the order of tokens: what they share, all share
        shortest = min(map(list, prompts), key=len)
        alike = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        length = min(alike, len(shortest) - 1)
        return cls(first[:length], shortest, max(map(len, prompts))) if length >= LEAST_TOKENS else None


class SharedPrefix:
    """The keys and values of `tokens`, for one row; `cache` is a transformers cache of layers that rows can be taken from."""

    def __init__(self, tokens: Sequence[int], cache: Any) -> None:
        self.tokens, self.cache = list(tokens), cache

    def cache_for(self, rows: int) -> Any:
        """A cache that begins with the prefix in so many rows. They are views: what is appended first copies them, as any
        append does."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            if layer.is_initialized:  # layers that use another's keys and values have none
                layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
                layer.values = layer.values.expand(rows, *layer.values.shape[1:])
        return cache


def padded(
    prompts: Sequence[Sequence[int]], pad: int, shared: int, device: torch.device, length: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask [B, S] of prompts whose first `shared` tokens are the same: the padding stands behind those. S is the
    longest prompt's, or `length`."""
    length = max(length, *map(len, prompts))
    ids = [[*p[:shared], *[pad] * (length - len(p)), *p[shared:]] for p in prompts]
    mask = [[1] * shared + [0] * (length - len(p)) + [1] * (len(p) - shared) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.no_grad()
def compute_prefix(model: PreTrainedModel, common: CommonPrefix, max_new_tokens: int) -> SharedPrefix | None:
    """The keys and values of `common`; None where this model's rows cannot share them. With a model in parts on all ranks, every
    rank must call it."""
    outputs = model(torch.tensor([common.tokens], device=model.device), use_cache=True, logits_to_keep=1)
    prefix = SharedPrefix(common.tokens, outputs.past_key_values)
    if not spans_everything(prefix.cache, common.longest + max_new_tokens):
        return None
    return prefix if _same_both_ways(model, prefix, common) else None


def _same_both_ways(model: PreTrainedModel, prefix: SharedPrefix, common: CommonPrefix) -> bool:
    """Whether the shortest prompt, behind as much padding as it can get, has the next token's logits that it has alone."""
    prompt, shared = common.shortest, len(prefix.tokens)
    alone_V = model(torch.tensor([prompt], device=model.device), use_cache=False, logits_to_keep=1).logits[0, -1].float()
    ids_BS, mask_BS = padded([prompt], prompt[-1], shared, model.device, common.longest)
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    behind_V = model(
        ids_BS[:, shared:], attention_mask=mask_BS, position_ids=positions_BS[:, shared:],
        past_key_values=prefix.cache_for(1), use_cache=True, logits_to_keep=1,
    ).logits[0, -1].float()  # fmt: skip
    apart, spread = (alone_V - behind_V).abs().max(), alone_V.max() - alone_V.min()
    return bool(apart <= TOLERANCE.get(model.dtype, HALF_TOLERANCE) * spread)


def rows_can_be_taken(cache: Any) -> bool:
    """Whether rows can be taken out of the cache: of keys and values, not of recurrent states."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None]))


def spans_everything(cache: Any, length: int) -> bool:
    """Whether all of the cache's layers see every one of `length` tokens: full attention, or a window that is wider."""
    return rows_can_be_taken(cache) and all(
        length < layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)
    )
