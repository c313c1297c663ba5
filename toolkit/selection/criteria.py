"""Criteria: rules that turn a block's statistics into one score per expert; higher stays.

CRITERIA is the whole list. g is the gate weight, f an expert's unweighted output; sums run over the tokens routed to
the expert. All take the statistics, a block's name, which tokens count, and a seed, and return float64 [E].
"""

import hashlib
from collections.abc import Callable

import torch

from toolkit.expert_statistics import ExpertStatistics, Tokens

Criterion = Callable[[ExpertStatistics, str, Tokens, int], torch.Tensor]


def random(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """A seeded draw per block: the control every claim has to beat."""
    digest = hashlib.sha256(f"{seed}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.rand(len(statistics.get(block, "count", tokens)), generator=generator, dtype=torch.float64)


def frequency(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """n: how many tokens chose the expert (NAEE's baseline, arXiv 2402.14800; MC-SMoE, arXiv 2310.01334)."""
    return statistics.get(block, "count", tokens)


def gate_weight(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ g: the routing score."""
    return statistics.get(block, "gate_sum", tokens)


def ean(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ ‖f‖: expert activation norm (EAN in the REAP paper, arXiv 2510.13999)."""
    return statistics.get(block, "norm_sum", tokens)


def weighted_ean(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ g‖f‖: what the expert adds to the residual stream in total (REAP's code)."""
    return statistics.get(block, "gated_norm_sum", tokens)


def reap(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ g‖f‖ / n: the same per routed token (REAP, arXiv 2510.13999)."""
    return statistics.get(block, "gated_norm_sum", tokens) / statistics.get(block, "count", tokens).clamp(min=1)


CRITERIA: dict[str, Criterion] = {
    criterion.__name__: criterion for criterion in (random, frequency, gate_weight, ean, weighted_ean, reap)
}
