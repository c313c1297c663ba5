"""Next-token distributions in a few kilobytes each, whatever the vocabulary, and other distributions compared with them.

    KL          = Σ_v p_v (log p_v − log q_v)    p: the one that was kept, q: the other
    acceptance  = Σ_v min(p_v, q_v)              how likely p, sampling, accepts what q drafts

Of each token at most ENTRIES vocabulary entries are kept, with their probabilities in float32:

- where so many hold all but REST of the probability: those, and all others together as one outcome;
- else every entry more likely than w, and of the others a systematic sample with probabilities proportional to theirs
  (Madow 1949): ordered by probability, one from each stretch of probability w. An entry drawn stands for its whole stretch;
  w is such that both together are ENTRIES. The sums over the others are then estimates, means over what was drawn:

      Σ p_v log(p_v / q_v)  ≈  w Σ_drawn log(p_v / q_v)
      Σ min(p_v, q_v)       ≈  w Σ_drawn min(1, q_v / p_v)

The estimates are unbiased to 2e-4, also where q gives much to what p hardly knows. Their standard error in a mean over 512
tokens, measured at a vocabulary of 50,000 (tests/evaluation/test_distributions.py): below 1e-3, in nats and of the acceptance,
for distributions as flat as the uniform one that are half a nat apart, the worst of those tried; below 1e-4 for those of models
that know something.
Shape legend: N tokens, V vocabulary, M kept entries of N tokens together, K those of the token that keeps most.
"""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

ENTRIES = 2048
REST = 1e-6
TOKENS_AT_ONCE = 64  # sorted copies of [tokens, V] are made of so many at a time
ENTRY_BYTES, TOKEN_BYTES = 8, 12


class CompressedDistributions(NamedTuple):
    """Distributions over the vocabulary of N tokens."""

    count_N: torch.Tensor  # int32: entries kept of each
    drawn_N: torch.Tensor  # int32: how many of them, the last ones, are drawn; 0: the others are one outcome
    index_M: torch.Tensor  # int32, one token's after the other's, by falling probability
    log_p_M: torch.Tensor  # float32, likewise
    rest_N: torch.Tensor  # float32: log of the probability of all entries that are not kept for themselves; -inf: none


def bytes_per_token(vocabulary: int) -> int:
    """The most bytes that one token's distribution takes."""
    return ENTRY_BYTES * min(ENTRIES, vocabulary) + TOKEN_BYTES


def compress(logits_NV: torch.Tensor) -> CompressedDistributions:
    """The distributions that these logits stand for, on the CPU."""
    parts = [_compress(part_NV) for part_NV in logits_NV.split(TOKENS_AT_ONCE)]
    return CompressedDistributions(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _compress(logits_NV: torch.Tensor) -> CompressedDistributions:
    log_p_NV, index_NV = logits_NV.float().log_softmax(-1).sort(-1, descending=True)
    vocabulary, where = logits_NV.shape[-1], logits_NV.device
    rank_V = torch.arange(vocabulary, device=where)
    p_NV = log_p_NV.double().exp()
    rising_NV = p_NV.flip(-1).cumsum(-1)  # the probability of each entry and all less likely ones, the least likely first
    from_here_NV = rising_NV.flip(-1)
    count_N = (from_here_NV > REST).sum(-1)  # the fewest entries that leave no more than REST
    large_N = count_N > ENTRIES
    # Entries that even a stretch of probability of their own would hold more than once
    certain_N = ((ENTRIES - rank_V).clamp(min=0) * p_NV > from_here_NV).cumprod(-1).sum(-1)
    certain_N = torch.where(large_N, certain_N, count_N)
    kept_NV = rank_V < certain_N[:, None]
    rest_N = log_p_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1)
    drawn_N = torch.where(large_N, ENTRIES - certain_N, 0)
    if large_N.any():
        draw_M = torch.arange(ENTRIES, device=where)
        stretch_N = from_here_NV.gather(-1, certain_N[:, None].clamp(max=vocabulary - 1))[:, 0] / drawn_N.clamp(min=1)
        middle_NM = (drawn_N[:, None] - draw_M - 0.5) * stretch_N[:, None]  # of each stretch: the probability from there on
        place_NM = (vocabulary - 1 - torch.searchsorted(rising_NV, middle_NM)).clamp(min=0)
        drawn_NM = draw_M < drawn_N[:, None]
        kept_NV[torch.arange(len(place_NM), device=where)[:, None].expand_as(place_NM)[drawn_NM], place_NM[drawn_NM]] = True
    count_N = kept_NV.sum(-1)
    return CompressedDistributions(count_N.int(), (count_N - certain_N).int(), index_NV[kept_NV].int(), log_p_NV[kept_NV], rest_N)


def compare(kept: CompressedDistributions, logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and acceptance of each token, in float64: of the distributions that the logits stand for against the kept ones."""
    counts: list[int] = kept.count_N.tolist()
    index, log_p = kept.index_M.split(counts), kept.log_p_M.split(counts)
    parts = []
    for start in range(0, len(logits_NV), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        parts.append(_compare(index[part], log_p[part], kept.drawn_N[part], kept.rest_N[part], logits_NV[part]))
    kl, acceptance = zip(*parts, strict=True)
    return torch.cat(kl), torch.cat(acceptance)


def _compare(
    index: tuple[torch.Tensor, ...], log_p: tuple[torch.Tensor, ...], drawn_N: torch.Tensor, rest_N: torch.Tensor,
    logits_NV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    where, vocabulary = logits_NV.device, logits_NV.shape[-1]
    # Rows end with an entry that no vocabulary has, and that has no probability
    index_NK = pad_sequence([row.long() for row in index], batch_first=True, padding_value=vocabulary).to(where)
    log_p_NK = pad_sequence(list(log_p), batch_first=True, padding_value=-math.inf).to(where).double()
    log_q_NV = pad(logits_NV.float().log_softmax(-1), (0, 1), value=-math.inf)
    log_q_NK = log_q_NV.gather(-1, index_NK).double()
    there_NK, drawn_N, rest_N = index_NK < vocabulary, drawn_N.to(where), rest_N.to(where).double()
    certain_NK = torch.arange(index_NK.shape[-1], device=where) < (there_NK.sum(-1) - drawn_N)[:, None]
    others_NV = log_q_NV.scatter(-1, torch.where(certain_NK, index_NK, vocabulary), -math.inf)  # not kept for themselves

    p_NK, p_rest_N, log_q_rest_N = log_p_NK.exp(), rest_N.exp(), others_NV.logsumexp(-1).double()
    kl_N = torch.where(certain_NK & (p_NK != 0), p_NK * (log_p_NK - log_q_NK), 0).sum(-1)
    acceptance_N = torch.where(certain_NK, torch.minimum(p_NK, log_q_NK.exp()), 0).sum(-1)
    one_kl_N = torch.where(p_rest_N != 0, p_rest_N * (rest_N - log_q_rest_N), 0)
    one_acceptance_N = torch.minimum(p_rest_N, log_q_rest_N.exp())

    drawn_NK, stretch_N = there_NK & ~certain_NK, p_rest_N / drawn_N.clamp(min=1)
    drawn_kl_N = stretch_N * torch.where(drawn_NK, log_p_NK - log_q_NK, 0).sum(-1)
    drawn_acceptance_N = stretch_N * torch.where(drawn_NK, (log_q_NK - log_p_NK).exp().clamp(max=1), 0).sum(-1)
    kl_N += torch.where(drawn_N > 0, drawn_kl_N, one_kl_N)
    acceptance_N += torch.where(drawn_N > 0, drawn_acceptance_N, one_acceptance_N)
    return kl_N.cpu(), acceptance_N.cpu()
