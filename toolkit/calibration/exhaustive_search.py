"""NAEE's objective for every subset of a block's experts at once (up to 16 experts).

L(C) = sum over batches of || y - y(C) ||_F, the Frobenius norm over the batch's real tokens, not squared.

Where a token's gate weights depend only on which experts it is given (Mixtral, Qwen3, gpt-oss: normalised over the
top k), its error depends on few things: which experts S it ends with, and which better ones, M, had to be removed for
that. Whether a removed set N leads there,

    [M in N] [S not in N]  =  sum over U in S of (-1)^|U| [M + U in N],

is a sum of "is contained in N": so each possible (S, M) is written once into an array over all 2^E sets of removed
experts, and one sum over contained sets (a zeta transform) gives the error of every N. 28 routings of a token instead
of 246 for 8 experts top 2, 120 instead of 65,000 for 16; all 28 of a batch at once, in operations of which none waits for
a GPU. Other routers (OLMoE, Qwen2: normalised over all experts that are left) are called for each subset in turn.

Shape legend: T tokens, E experts, K experts per token, C choices of K experts by their rank, U = 2^K subsets of one choice.
A set of experts is the integer with their bits.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import ClassVar

import torch

from toolkit.calibration.token_errors import TokenErrors, token_errors
from toolkit.cuts.statistics import SubsetResult
from toolkit.moe import BlockActivations, MoEBlock, Rerouter, same_routing
from toolkit.runtime.distributed import gather

ROUNDING = 1e-13
TABLE_LIMIT = 1000  # subsets per `keep` that are written into statistics.json one by one
CHOICE_BYTES = 2**27  # of the errors that are added into the array at once, float64, and as much for where they belong


class ExhaustiveSubsetSearch:
    """Adds up, batch by batch, the losses [2^E] by the set of removed experts. A rank without batches needs no rerouter."""

    kind: ClassVar[str] = "exhaustive"

    def __init__(self, block: MoEBlock, rerouter: Rerouter | None, by_rank: bool) -> None:
        self.E, self.K = block.expert_count, block.experts_per_token
        self.rerouter, self.by_rank = rerouter, by_rank
        self.losses = torch.zeros(2**self.E, dtype=torch.float64)  # on the block's device from the first batch on
        self.ranks_CK: torch.Tensor | None = None

    def add(self, activations: BlockActivations, rows: torch.Tensor, target_TH: torch.Tensor | None = None) -> None:
        """One batch's tokens `rows`; `target_TH` is y where it is not this batch's own output."""
        rerouter = self.rerouter
        assert rerouter is not None
        squares = torch.zeros(2**self.E, dtype=torch.float64, device=rows.device)
        for chunk, errors in token_errors(activations, rows, self.E, target_TH):
            inputs = rerouter.inputs(activations)[chunk]
            if self.by_rank:
                self._add_by_rank(squares, errors, inputs, rerouter)
            else:
                all_rows = torch.arange(len(chunk), device=chunk.device)
                for kept in _subsets(self.E, range(self.K, self.E + 1)):
                    squares[_bits(self.E, kept)] += errors(*rerouter(inputs, list(kept)), all_rows).sum()
        if self.by_rank:
            for expert in range(self.E):
                halves = squares.view(-1, 2, 2**expert)
                halves[:, 1] += halves[:, 0]
        # The sums leave rounding where nothing is lost, and its root would look like a loss
        squares = torch.where(squares < ROUNDING * squares.max(), 0, squares)
        self.losses = self.losses.to(squares.device) + squares.sqrt()

    def _add_by_rank(self, squares: torch.Tensor, errors: TokenErrors, logits_TE: torch.Tensor, rerouter: Rerouter) -> None:
        if self.ranks_CK is None:
            self.ranks_CK = torch.tensor(list(combinations(range(self.E), self.K)), device=logits_TE.device)
        order_ET = logits_TE.argsort(dim=1, descending=True, stable=True).T.contiguous()
        bits_ET = 1 << order_ET
        before_ET = bits_ET.cumsum(0)  # the sets of the best 1, 2, … experts
        for ranks_CK in self.ranks_CK.split(max(1, CHOICE_BYTES // (8 * 2**self.K * max(1, len(logits_TE))))):
            error_CT = errors.of_choices(*self._routed(rerouter, logits_TE, order_ET[ranks_CK]))
            bits_CKT = bits_ET[ranks_CK]
            sets_CUT = (before_ET[ranks_CK[:, -1]] - bits_CKT.sum(1)).unsqueeze(1)  # M, then M + U for every U within S
            values_CUT = error_CT.unsqueeze(1)
            for place in range(self.K):
                sets_CUT = torch.cat([sets_CUT, sets_CUT + bits_CKT[:, place : place + 1]], 1)
                values_CUT = torch.cat([values_CUT, -values_CUT], 1)
            squares.index_add_(0, sets_CUT.flatten(), values_CUT.flatten())

    def _routed(self, rerouter: Rerouter, logits_TE: torch.Tensor, chosen_CKT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts and gate weights [C, K, T] as if only the chosen ones existed, from one call of the router."""
        choices, k, tokens = chosen_CKT.shape
        flat = rerouter.gate_weights(logits_TE.repeat(choices, 1), chosen_CKT.transpose(1, 2).reshape(-1, k))
        index, gate = (part.view(choices, tokens, k).transpose(1, 2) for part in flat)
        return index, gate

    def best_subsets(self, keeps: Sequence[int]) -> dict[int, SubsetResult]:
        """Over all ranks, per number of kept experts the best set, its loss, and (up to TABLE_LIMIT sets) all losses."""
        losses = torch.stack(gather(self.losses.cpu())).sum(0)
        everything = 2**self.E - 1
        results = {}
        for keep in keeps:
            subsets = list(combinations(range(self.E), keep))
            losses_of_size = losses[[everything - sum(1 << e for e in kept) for kept in subsets]]
            # Rounding must not decide between equal sets: of those, the first (lower indices) stays
            best = int((losses_of_size <= losses_of_size.min() * (1 + 1e-12)).nonzero()[0])
            result = SubsetResult(list(subsets[best]), float(losses_of_size[best]))
            if len(subsets) <= TABLE_LIMIT:
                pairs = zip(subsets, losses_of_size.tolist(), strict=True)
                result.table = {",".join(map(str, kept)): loss for kept, loss in pairs}
            results[keep] = result
        return results


def routes_by_rank(block: MoEBlock, rerouter: Rerouter, activations: BlockActivations) -> bool:
    """Whether over any subset the K largest logits are chosen, with gate weights that depend on these logits only."""
    if not rerouter.from_logits:
        return False
    logits_TE, k = rerouter.inputs(activations), block.experts_per_token
    order_TE = logits_TE.argsort(dim=1, descending=True, stable=True)
    generator = torch.Generator().manual_seed(0)
    for size in range(k, block.expert_count + 1):
        kept = sorted(torch.randperm(block.expert_count, generator=generator)[:size].tolist())
        present = torch.isin(order_TE, torch.tensor(kept, device=order_TE.device))
        first_TK = order_TE[present].view(len(order_TE), size)[:, :k]
        if not same_routing(rerouter(logits_TE, kept), rerouter.gate_weights(logits_TE, first_TK), block.expert_count):
            return False
    return True


def _subsets(experts: int, sizes: range) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(experts), size) for size in sizes)


def _bits(experts: int, kept: tuple[int, ...]) -> int:
    """The set of experts that are not kept."""
    return 2**experts - 1 - sum(1 << e for e in kept)
