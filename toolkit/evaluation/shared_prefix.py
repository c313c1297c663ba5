"""What all prompts of an evaluation begin with, computed once: the same solved examples, or a chat template's system prompt.

Rows are padded on the left, so of a batch whose prompts share a prefix of P tokens, the first P columns hold nothing else:

    columns      0 … P−1                      P …
    row 1        ·  ·  ·  shot shot shot    │ shot shot shot a question
    row 2        shot shot shot shot shot   │ shot a question that is longer
                 └ taken from the prefix ┘    └ computed, as ever: same ids, same mask, same positions

The prefix's keys and values are computed for one row; each row of a batch takes those of its first columns from there, moved
by its padding, and starts at column P. Where today's loop would compute the prefix in every row, only the last few of its
tokens are computed again, in as many columns as the row has padding.

A cache of keys and values allows that, of full attention or of sliding windows; a recurrent state does not. For what a model may
hold that its cache does not show, the prompt whose keys and values are taken is computed both ways, and must come out alike.

Shape legend: B rows, N heads, D channels of a head, P tokens of the prefix, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

LEAST_TOKENS = 16  # a shorter prefix (what any template begins with) saves next to nothing
LEAST_PROMPTS = 4  # fewer cost hardly more than the prompt that is computed both ways
# How far apart the logits of the two ways may lie, as a share of the logits' range. Tiny models of forty families: 6e-7 at most
# in float32; in bfloat16, in which sums differ with the shape of a batch, 0.007, and 0.04 where another expert was chosen
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.1


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
    """`tokens`, whose keys and values stand first in the one row of `cache`: all of them, also where a window is shorter."""

    def __init__(self, tokens: Sequence[int], cache: DynamicCache) -> None:
        self.tokens, self.cache = list(tokens), cache

    def cache_for(self, paddings: Sequence[int]) -> DynamicCache:
        """The cache of a batch of which the first P columns have passed. `paddings`: of each row, the tokens before its prompt.

        What stands in a column of padding is not seen.
        """
        columns_BP = torch.arange(len(self.tokens)) - torch.tensor(paddings)[:, None]
        cache = copy.copy(self.cache)
        cache.layers = [_rows(layer, columns_BP.clamp(min=0)) for layer in self.cache.layers]
        return cache


def _rows(layer: Any, columns_BP: torch.Tensor) -> Any:
    layer = copy.copy(layer)
    if not layer.is_initialized:  # it uses another layer's keys and values
        return layer
    if isinstance(layer, DynamicSlidingWindowLayer):  # as it would be after P tokens
        layer.cumulative_length, layer.record_past = columns_BP.shape[1], False
        columns_BP = columns_BP[:, -layer.sliding_window + 1 :]
    columns_BP = columns_BP.to(layer.device)
    layer.keys = layer.keys[0][:, columns_BP].transpose(0, 1)  # [N, P, D] -> [B, N, P, D]; appending makes it contiguous
    layer.values = layer.values[0][:, columns_BP].transpose(0, 1)
    return layer


@torch.no_grad()
def compute_prefix(model: PreTrainedModel, common: CommonPrefix) -> SharedPrefix | None:
    """Computes what the prompts have in common; None where this model's rows cannot begin with it, which one prompt shows that
    is computed both ways.

    With a model in parts on all ranks, call it on every rank.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not rows_can_be_taken(cache):
        return None
    cache.activate_past_recording()
    alone_V = _next_logits(model, common.shortest, cache)  # its first tokens' keys and values are the prefix's
    prefix = SharedPrefix(common.tokens, cache)
    # The same prompt, with as much padding as it can get
    padding, begun = common.longest - len(common.shortest), len(common.tokens)
    ids = [common.shortest[0]] * padding + common.shortest
    mask_BS = torch.tensor([[0] * padding + [1] * len(common.shortest)], device=model.device)
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, begun:]
    begun_V = _next_logits(model, ids[begun:], prefix.cache_for([padding]), attention_mask=mask_BS, position_ids=positions_BS)
    apart, spread = (alone_V - begun_V).abs().max(), alone_V.max() - alone_V.min()
    return prefix if apart <= TOLERANCE.get(model.dtype, HALF_TOLERANCE) * spread else None


def _next_logits(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache, **inputs: torch.Tensor) -> torch.Tensor:
    """[V], of one row."""
    ids_BS = torch.tensor([ids], device=model.device)
    logits: torch.Tensor = model(ids_BS, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs).logits
    return logits[0, -1].float()


def rows_can_be_taken(cache: Any) -> bool:
    """Whether rows can be taken out of the cache: of keys and values, not of recurrent states."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None]))
