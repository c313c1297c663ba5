"""NAEE's objective where enumeration is impossible (64 choose 32 is 1.8e18): greedy removal and swaps, routing redone.

Tokens with their inner products G [E, E] are kept during the pass (a subsample of every batch where E^2 T grows too
large, `GreedySubsetSearch.stride`), then searched block by block:

    greedy   remove the expert whose removal costs least, again and again; where gate weights are normalised over the
             top k only tokens routed to it are computed anew, elsewhere (OLMoE, Qwen2) every token's weights change
    swaps    at half, a quarter, … of the experts: take one in, put the cheapest one out, until no such swap helps
    nested   a quarter is sought within the half, and so on; sets of sizes between two goals by bisection, within the
             larger and around the smaller: so a set for fewer experts always lies within the set for more

Ranks hold their own batches and add up the candidates' losses, so all take the same step.

Shape legend: T tokens, E experts, K experts per token, N batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from toolkit.calibration.token_errors import TokenErrors, token_errors
from toolkit.cuts.statistics import SubsetResult
from toolkit.moe import BlockActivations, MoEBlock, Rerouter
from toolkit.runtime.distributed import gather, world_size

GRAM_BYTES = 2**31  # all inner products kept at once, over all blocks and ranks
GAIN = 1e-9  # a swap must lower the loss by this part of it: rounding never swaps


class Routing(NamedTuple):
    """All tokens over one subset."""

    kept: list[int]
    index_TK: torch.Tensor
    gate_TK: torch.Tensor
    error_T: torch.Tensor
    square_N: torch.Tensor


class Removal(NamedTuple):
    """What changes when an expert goes: for the tokens `rows` that it touches."""

    square_N: torch.Tensor
    rows: torch.Tensor
    index_RK: torch.Tensor
    gate_RK: torch.Tensor
    error_R: torch.Tensor


@dataclass
class _Batch:
    """One batch's tokens: what TokenErrors and the rerouter need of them."""

    tokens: int  # before subsampling
    parts: list[torch.Tensor | None]  # gram, index, gate, inherited_TE, inherited_T, inputs

    @property
    def kept(self) -> int:
        gram = self.parts[0]
        return 0 if gram is None else len(gram)

    def thin(self, step: int) -> None:
        self.parts = [None if part is None else part[::step].clone() for part in self.parts]


class GreedySubsetSearch:
    """The tokens of a block's calibration, the objective over them, `loss(kept)`, and the search. `blocks` are searched at
    once and share the memory. A rank without batches needs no rerouter."""

    kind: ClassVar[str] = "greedy and swaps"

    def __init__(self, block: MoEBlock, rerouter: Rerouter | None, by_rank: bool, blocks: int = 1) -> None:
        self.E, self.K = block.expert_count, block.experts_per_token
        self._rerouter, self.by_rank = rerouter, by_rank
        self.limit = max(1, GRAM_BYTES // (blocks * world_size() * self.E**2 * 4))
        self.stride = 1  # every how many-th token of a batch is kept
        self.used = 0  # tokens searched
        self.batches: list[_Batch] = []

    @property
    def rerouter(self) -> Rerouter:
        assert self._rerouter is not None  # needed where there are tokens
        return self._rerouter

    def add(self, activations: BlockActivations, rows: torch.Tensor, target_TH: torch.Tensor | None = None) -> None:
        """One batch's tokens `rows`; `target_TH` is y where it is not this batch's own output."""
        chosen = rows[:: self.stride]
        inputs = self.rerouter.inputs(activations)
        pieces = [
            # G in half the memory: c is small where the error is, so rounding stays small too
            [e.gram_TEE.float(), e.index_TK, e.gate_TK, e.inherited_TE, e.inherited_T, inputs[chunk]]
            for chunk, e in token_errors(activations, chosen, self.E, target_TH)
        ]
        if pieces:
            joined = [None if column[0] is None else torch.cat(column) for column in zip(*pieces, strict=True)]
            self.batches.append(_Batch(len(rows), joined))
        while sum(batch.kept for batch in self.batches) > self.limit and self.stride < 2**20:
            self._thin(2)

    def _thin(self, step: int) -> None:
        self.stride *= step
        for batch in self.batches:
            batch.thin(step)

    def concatenate(self) -> None:
        """Joins the batches' tokens for the search; every rank must call it."""
        self._thin(max(gather(self.stride)) // self.stride)
        if not self.batches:  # this rank had none
            self.square_weight_N = torch.zeros(0, dtype=torch.float64)
            return
        columns = zip(*(batch.parts for batch in self.batches), strict=True)
        gram, index, gate, a, b, inputs = (None if c[0] is None else torch.cat(c) for c in columns)  # type: ignore[arg-type]
        assert gram is not None and index is not None and gate is not None and inputs is not None
        self.errors, self.inputs = TokenErrors(gram, index, gate, a, b), inputs
        lengths = torch.tensor([batch.kept for batch in self.batches])
        self.batch_T = torch.arange(len(lengths)).repeat_interleave(lengths).to(index.device)
        counts = torch.tensor([batch.tokens for batch in self.batches])
        self.square_weight_N = (counts / lengths).to(index.device, torch.float64)
        self.used = len(index)
        self.batches = []

    # The objective

    def routing(self, kept: list[int]) -> Routing:
        if not len(self.square_weight_N):
            empty = torch.zeros(0, dtype=torch.float64)
            return Routing(kept, torch.zeros(0, self.K, dtype=torch.long), torch.zeros(0, self.K), empty, empty)
        index, gate = self.rerouter(self.inputs, kept)
        error = self.errors(index, gate, torch.arange(len(index), device=index.device))
        return Routing(kept, index, gate, error, self._by_batch(error, self.batch_T))

    def losses(self, squares_XN: list[torch.Tensor]) -> list[float]:
        """The losses of several candidates, over all ranks, from their squared errors per batch."""
        mine = [float(square_N.clamp(min=0).sqrt().sum()) for square_N in squares_XN]
        return [sum(ranks) for ranks in zip(*gather(mine), strict=True)]

    def loss(self, kept: list[int]) -> float:
        """L(C) = sum over batches of || y - y(C) ||_F (an estimate where tokens were subsampled)."""
        return self.losses([self.routing(kept).square_N])[0]

    def removal(self, now: Routing, expert: int) -> Removal:
        touched_T = (now.index_TK == expert).any(1) | (not self.by_rank)
        rows = touched_T.nonzero().flatten()
        if not len(rows):
            return Removal(now.square_N, rows, now.index_TK[rows], now.gate_TK[rows], now.error_T[rows])
        index, gate = self.rerouter(self.inputs[rows], [e for e in now.kept if e != expert])
        error = self.errors(index, gate, rows)
        square = now.square_N + self._by_batch(error - now.error_T[rows], self.batch_T[rows])
        return Removal(square, rows, index, gate, error)

    def without(self, now: Routing, expert: int) -> Routing:
        gone = self.removal(now, expert)
        index, gate, error = now.index_TK.clone(), now.gate_TK.clone(), now.error_T.clone()
        index[gone.rows], gate[gone.rows], error[gone.rows] = gone.index_RK, gone.gate_RK, gone.error_R
        return Routing([e for e in now.kept if e != expert], index, gate, error, gone.square_N)

    def _by_batch(self, error_T: torch.Tensor, batch_T: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(self.square_weight_N).index_add_(0, batch_T, error_T) * self.square_weight_N

    # The search

    def cheapest(self, now: Routing, candidates: list[int]) -> tuple[float, int]:
        """The loss without the expert whose removal costs least, and that expert; of equals the higher index goes."""
        losses = self.losses([self.removal(now, expert).square_N for expert in candidates])
        least = min(losses)
        return least, max(e for e, loss in zip(candidates, losses, strict=True) if loss <= least * (1 + 1e-12))

    def greedily_removed(self, now: Routing, size: int, never: frozenset[int] = frozenset()) -> list[Routing]:
        """Greedy removal down to `size` experts, none of them of `never`; every step."""
        steps = []
        while len(now.kept) > size:
            now = self.without(now, self.cheapest(now, [e for e in now.kept if e not in never])[1])
            steps.append(now)
        return steps

    def improved_by_swaps(self, now: Routing, within: list[int], never: frozenset[int] = frozenset()) -> Routing:
        """Swaps with experts of `within` until none lowers the loss; experts of `never` are not removed."""
        loss, failed = self.losses([now.square_N])[0], 0
        outside = [e for e in within if e not in now.kept]
        while outside and failed < len(outside):
            expert = outside.pop(0)
            more = self.routing(sorted([*now.kept, expert]))
            least, gone = self.cheapest(more, [e for e in now.kept if e not in never])
            if least < loss * (1 - GAIN):
                now, loss, failed = self.without(more, gone), least, 0
                outside.append(gone)
            else:
                failed += 1
                outside.append(expert)
        return now

    def nested_between(self, larger: Routing, smaller: Routing) -> list[Routing]:
        """A set of every size between the two, each within the one before."""
        size = (len(larger.kept) + len(smaller.kept)) // 2
        if size == len(smaller.kept):
            return []
        inner = frozenset(smaller.kept)
        middle = self.improved_by_swaps(self.greedily_removed(larger, size, inner)[-1], larger.kept, inner)
        return [*self.nested_between(larger, middle), middle, *self.nested_between(middle, smaller)]

    def best_subsets(self, keeps: Sequence[int]) -> dict[int, SubsetResult]:
        """Per number of kept experts the set, its loss, and a lower bound of the loss of any set of that size."""
        self.concatenate()
        chain = [self.routing(list(range(self.E)))]
        while len(chain[-1].kept) > self.K:
            larger = chain[-1]
            size = max(self.K, len(larger.kept) // 2)
            goal = self.improved_by_swaps(self.greedily_removed(larger, size)[-1], larger.kept)
            chain += [*self.nested_between(larger, goal), goal]
        bounds = self.lower_bounds()
        results = {}
        for now in chain:
            if len(now.kept) in keeps:
                loss = self.losses([now.square_N])[0]
                results[len(now.kept)] = SubsetResult(now.kept, loss, lower_bound=bounds[len(now.kept)])
        return results

    def lower_bounds(self) -> list[float]:
        """Per number of kept experts, 0…E, a bound below the loss of every set.

        Whatever takes the place of a chosen expert e, the token's output misses at least the part of g_e f_e that lies
        outside the span of all other outputs: g_e^2 / (G^-1)_ee squared. Of the experts removed from a token's choice at
        least one in K counts in full, and the root of a sum is no more than the sum of roots over batches. Loose, but
        certain; 0 where the outputs are linearly dependent, and in progressive mode.
        """
        missing = torch.zeros(self.E, dtype=torch.float64)
        if len(self.square_weight_N) and self.errors.inherited_T is None:
            for rows in torch.arange(len(self.batch_T), device=self.batch_T.device).split(1024):
                factor, failed = torch.linalg.cholesky_ex(self.errors.gram_TEE[rows].double())
                inverse_TE = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
                index = self.errors.index_TK[rows]
                least = self.errors.gate_TK[rows].double() ** 2 / inverse_TE.gather(1, index)
                least[(failed > 0) | ~least.isfinite().all(1)] = 0
                least *= self.square_weight_N[self.batch_T[rows]].unsqueeze(1)
                missing += torch.zeros_like(missing, device=least.device).index_add_(0, index.flatten(), least.flatten()).cpu()
        cheapest = torch.stack(gather(missing)).sum(0).sort().values
        return [float((cheapest[: self.E - kept].sum() / self.K).sqrt()) for kept in range(self.E + 1)]
