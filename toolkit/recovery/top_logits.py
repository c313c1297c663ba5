"""A distribution over the vocabulary in 65 numbers: its largest logits, and the weight of all others together.

Shape legend: N tokens, V vocabulary, K = min(64, V) largest logits.
"""

import math
from typing import NamedTuple

import torch

TOP_LOGITS = 64
TOKENS_AT_ONCE = 1024  # float32 copies of [tokens, V] are made of so many at a time
LOWEST_OFFSET = torch.finfo(torch.float16).min  # stands for -inf: its probability is 0 all the same, without 0 x inf


class TopAndTail(NamedTuple):
    """A distribution over V tokens at a temperature, as K of them and the rest together."""

    index_NK: torch.Tensor  # int32
    offset_NK: torch.Tensor  # float16: logit - largest logit, not yet divided by the temperature
    tail_N: torch.Tensor  # float32: log sum over the rest of exp(offset / temperature); -inf where there is no rest


def bytes_per_token(vocabulary: int) -> int:
    """388 for every vocabulary of at least 64."""
    return min(TOP_LOGITS, vocabulary) * (4 + 2) + 4


def top_and_tail(logits_NV: torch.Tensor, temperature: float) -> TopAndTail:
    """The K largest logits, and the rest in one number."""
    parts = []
    for part_NV in logits_NV.split(TOKENS_AT_ONCE):
        offset_NV = part_NV.float()
        offset_NV = offset_NV - offset_NV.amax(-1, keepdim=True)
        top = offset_NV.topk(min(TOP_LOGITS, offset_NV.shape[-1]))
        tail_N = (offset_NV.scatter(-1, top.indices, -math.inf) / temperature).logsumexp(-1)
        parts.append(TopAndTail(top.indices.int(), top.values.clamp(min=LOWEST_OFFSET).half(), tail_N))
    return TopAndTail(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
