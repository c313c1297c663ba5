"""Criteria: rules that choose a block's experts from its statistics. CRITERIA lists them all.

Most are scores, functions of the statistics, a block's name, the tokens that count and a seed: one number per expert,
float64 [E], higher stays. `reconstruction` reads the result of a subset search instead.

g is the gate weight, f an expert's unweighted output, h the residual stream, y the block's routed output, p the router's
whole distribution; sums run over the tokens routed to the expert unless a docstring names others.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch

from toolkit.cuts.statistics import ExpertStatistics, SearchMode, Tokens
from toolkit.recipe.schema import PruningRecipe
from toolkit.runtime.errors import PollardError

Score = Callable[[ExpertStatistics, str, Tokens, int], torch.Tensor]


class SearchRequest(NamedTuple):
    """A search over sets of experts that calibration makes, for it needs the experts' outputs."""

    mode: SearchMode
    keep: int | float | None  # the one size that it serves; None: every size

    @property
    def identity(self) -> list[str | int | float]:
        """What of the recipe decides its result, for the fingerprint of calibration."""
        return [self.mode, *([] if self.keep is None else [self.keep])]

    @property
    def forward_passes(self) -> int:
        """Of a decoder layer per batch: progressive runs the original's, the pruned model's over all experts to compare,
        and over the kept ones to go on."""
        return 3 if self.mode == "progressive" else 1

    @property
    def hidden_states(self) -> int:
        """Held per token: progressive runs the original and the pruned model side by side."""
        return 2 if self.mode == "progressive" else 1


class Choice(NamedTuple):
    """What is to be chosen in every block."""

    keep: int
    tokens: Tokens = "all"
    mode: SearchMode = "layerwise"
    seed: int = 0


class ChosenExperts(NamedTuple):
    """Of one block, with the score of every expert where the criterion has one."""

    kept: list[int]
    scores: list[float] | None = None


class Criterion(ABC):
    """One rule: what it means, what it needs, and how it selects."""

    name: str
    meaning: str
    """One line for people, with the formula and the paper."""
    searched: ClassVar[bool] = False
    """Whether calibration must search subsets for it; its plans then name the mode."""
    all_tokens_only: ClassVar[bool] = False
    """Whether it compares blocks on all tokens, and refuses `pruning.tokens: prompt` and `completion`."""

    def search(self, pruning: PruningRecipe) -> SearchRequest | None:
        """What calibration must search for a recipe's plan."""
        return None

    def check_tokens(self, tokens: Tokens) -> None:
        """Raises PollardError where the criterion cannot decide by these tokens."""
        if self.all_tokens_only and tokens != "all":
            raise PollardError(
                f"{self.name} compares the block's output on all tokens: pruning.tokens must be all, not {tokens}.",
                code="selection.tokens",
            )

    @abstractmethod
    def choose(self, statistics: ExpertStatistics, block: str, choice: Choice) -> ChosenExperts:
        """The experts of `block` that stay. Raises PollardError where the statistics lack what the criterion reads."""


class ScoreCriterion(Criterion):
    """Keeps the experts of the highest scores, of each expert group equally many; its name is the function's.

    Ties: the lower index stays. An expert that no token reached ranks below every other, unless `blind`.
    """

    def __init__(self, score: Score, reads: tuple[str, ...], blind: bool = False) -> None:
        self.name, self.meaning = score.__name__, (score.__doc__ or "").strip().splitlines()[0]
        self.score = score
        self.reads = reads
        """The statistics that the score is made of."""
        self.blind = blind
        """Whether it ignores what was observed."""

    def choose(self, statistics: ExpertStatistics, block: str, choice: Choice) -> ChosenExperts:
        scores = self.score(statistics, block, choice.tokens, choice.seed)
        order = self._ranked(scores, statistics, block, choice)
        kept = best_of_each_group(order, choice.keep, statistics.about.blocks[block].groups)
        return ChosenExperts(kept, scores.tolist())

    def order(self, statistics: ExpertStatistics, block: str, choice: Choice) -> list[int]:
        """All experts of `block`, the best first."""
        return self._ranked(self.score(statistics, block, choice.tokens, choice.seed), statistics, block, choice)

    def _ranked(self, scores: torch.Tensor, statistics: ExpertStatistics, block: str, choice: Choice) -> list[int]:
        count = statistics.get(block, "count", choice.tokens)
        unobserved = [False] * len(count) if self.blind else (count == 0).tolist()
        return sorted(range(len(scores)), key=lambda e: (unobserved[e], -scores[e].item(), e))


def best_of_each_group(order: list[int], number: int, groups: int) -> list[int]:
    """The first `number` experts of `order`, equally many of each of `groups` ranges of indices, ascending."""
    size = len(order) // groups
    return sorted(expert for g in range(groups) for expert in [e for e in order if e // size == g][: number // groups])


class Reconstruction(Criterion):
    name = "reconstruction"
    meaning = (
        "The subset that changes the block's output least, routing redone: min Σ_batches ‖y − y(C)‖ (NAEE, arXiv 2402.14800)."
    )
    searched = True
    all_tokens_only = True

    def search(self, pruning: PruningRecipe) -> SearchRequest:
        return SearchRequest(pruning.mode, pruning.keep if pruning.mode == "progressive" else None)

    def choose(self, statistics: ExpertStatistics, block: str, choice: Choice) -> ChosenExperts:
        mode, keep = choice.mode, choice.keep
        if keep == statistics.about.blocks[block].experts:  # nothing to choose
            return ChosenExperts(list(range(keep)))
        blocks = statistics.about.reconstruction.get(mode)
        if blocks is None:
            call = f'"{mode}"' + (f", keep={keep}" if mode == "progressive" else "")
            raise PollardError(
                f"These statistics hold no {mode} reconstruction search, which needs the experts' outputs while the model runs. "
                f"Calibrate again with it: toolkit.calibrate(model, batches, reconstruction={call}), or a recipe with "
                f"pruning.criterion=reconstruction pruning.mode={mode}.",
                code="selection.no-search",
            )
        sizes = blocks[block].keep if block in blocks else {}
        if keep not in sizes:
            searched = ", ".join(map(str, sizes)) or "none"
            raise PollardError(
                f"The {mode} reconstruction search of {block} has no set of {keep} experts (searched: {searched}). "
                f"Calibrate again for keep={keep}" + (", or choose one of these." if sizes else "."),
                code="selection.other-keep",
            )
        return ChosenExperts(list(sizes[keep].kept))


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


def mean_activation(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ ‖f‖ / n: mean activation norm, for pruning without a task (MAN, arXiv 2606.15716)."""
    return statistics.get(block, "norm_sum", tokens) / statistics.get(block, "count", tokens).clamp(min=1)


def mean_squared_activation(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ ‖f‖² / n: the same of squares, which favours rare large outputs (MSAN, arXiv 2606.15716)."""
    return statistics.get(block, "norm_square_sum", tokens) / statistics.get(block, "count", tokens).clamp(min=1)


def aimer(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """−mean|w| / rms(w) of the expert's weights: from no data at all (AIMER, arXiv 2603.18492)."""
    return -statistics.of_weights(block, "aimer")


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        ScoreCriterion(random, reads=("count",), blind=True),
        ScoreCriterion(frequency, reads=("count",)),
        ScoreCriterion(gate_weight, reads=("gate_sum",)),
        ScoreCriterion(soft_activation, reads=("probability_sum",)),
        ScoreCriterion(ean, reads=("norm_sum",)),
        ScoreCriterion(weighted_ean, reads=("gated_norm_sum",)),
        ScoreCriterion(reap, reads=("gated_norm_sum", "count")),
        ScoreCriterion(easy_ep, reads=("residual_shift_sum",)),
        ScoreCriterion(max_activation, reads=("max_norm",)),
        ScoreCriterion(mean_activation, reads=("norm_sum", "count")),
        ScoreCriterion(mean_squared_activation, reads=("norm_square_sum", "count")),
        ScoreCriterion(aimer, reads=("aimer",), blind=True),
        Reconstruction(),
    )
}
