"""Criteria: rules that choose a block's experts from its statistics.

CRITERIA is the whole list. Most are scores (SCORES): one number per expert, higher stays; these take the statistics, a
block's name, which tokens count, and a seed, and return float64 [E]. `reconstruction` looks a whole set up instead.

g is the gate weight, f an expert's unweighted output, h the residual stream, y the block's routed output, p the
router's whole distribution; sums run over the tokens routed to the expert unless said otherwise.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch

from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.runtime.errors import PollardError

Score = Callable[[ExpertStatistics, str, Tokens, int], torch.Tensor]
Mode = Literal["layerwise", "progressive"]


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


def soft_activation(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ p over all tokens: the router's whole distribution (SEER-MoE, arXiv 2404.05089; Unified-MoE-Compression)."""
    return statistics.get(block, "probability_sum", tokens)


def easy_ep(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ g‖f‖ max(1 − cos(h, h + y), 0): heavier where the block turns the residual stream (EASY-EP, arXiv 2504.06792)."""
    return statistics.get(block, "residual_shift_sum", tokens)


def max_activation(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """max ‖f‖: keeps the super experts, rare but extreme (arXiv 2507.23279)."""
    return statistics.get(block, "max_norm", tokens)


def reconstruction(statistics: ExpertStatistics, block: str, keep: int, mode: Mode = "layerwise") -> list[int]:
    """The subset that changes the block's output least, routing redone: min Σ_batches ‖y − y(C)‖ (NAEE, arXiv 2402.14800).

    The search itself is part of calibration. Raises PollardError where it was not run for this mode and `keep`.
    """
    found = statistics.about.get("reconstruction", {}).get(mode)
    if found is None:
        asked = f'"{mode}"' + (f", keep={keep}" if mode == "progressive" else "")
        raise PollardError(
            f"These statistics hold no {mode} reconstruction search, which needs the experts' outputs while the model runs. "
            f"Calibrate again with it: toolkit.calibrate(model, batches, reconstruction={asked}), or a recipe with "
            f"pruning.criterion=reconstruction pruning.mode={mode}."
        )
    try:
        return list(found[block]["keep"][str(keep)]["kept"])
    except KeyError:
        there = ", ".join(found.get(block, {}).get("keep", {})) or "none"
        raise PollardError(
            f"The {mode} reconstruction search of {block} has no set of {keep} experts (searched: {there}). "
            f"Calibrate again for keep={keep}" + (", or choose one of these." if there != "none" else ".")
        ) from None


SCORES: dict[str, Score] = {
    score.__name__: score
    for score in (random, frequency, gate_weight, soft_activation, ean, weighted_ean, reap, easy_ep, max_activation)
}
CRITERIA: dict[str, Callable[..., Any]] = {**SCORES, "reconstruction": reconstruction}
