"""NAEE's reconstruction search (arXiv 2402.14800), while the experts' outputs are in memory.

LayerwiseSearch: inputs and targets of every block are those of the original model, so one pass serves every `keep`.
ProgressiveSearch: layer by layer, each block is chosen for the inputs that the already pruned blocks before it pass on,
against the original model's output on its own inputs. Two forward passes per batch run side by side; one pass per `keep`.

The results stand in statistics.json, per mode and block (BlockSearchResult, docs/files.md).

Shape legend: T tokens, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from toolkit.calibration.exhaustive_search import ExhaustiveSubsetSearch, routes_by_rank
from toolkit.calibration.greedy_search import GreedySubsetSearch
from toolkit.calibration.observer import Observer, ProgressiveObserver
from toolkit.cuts.statistics import BlockSearchResult
from toolkit.moe import BlockActivations, MoEBlock, ObservedBatch, Rerouter, restricted
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError

ENUMERABLE = 16  # experts, where a token's errors go by the rank of its experts (see exhaustive_search.py)
ENUMERABLE_ONE_BY_ONE = 10
KINDS = {search.kind: search for search in (ExhaustiveSubsetSearch, GreedySubsetSearch)}


class BlockSearch:
    """The search in one block of `blocks` that are searched at once; the first batch decides its kind."""

    def __init__(self, block: MoEBlock, blocks: int = 1) -> None:
        self.block, self.blocks = block, blocks
        self.tokens = 0
        self.search: ExhaustiveSubsetSearch | GreedySubsetSearch | None = None

    def add(self, activations: BlockActivations, rows: torch.Tensor, target_TH: torch.Tensor | None = None) -> None:
        """One batch's real tokens `rows`; `target_TH` is the original block's output where it is not this batch's own."""
        if not len(rows):
            return
        if self.search is None:
            self.search = self._suitable(activations)
        self.tokens += len(rows)
        rows = activations.every.rows if activations.every else rows.to(activations.index_TK.device)  # of several devices one
        self.search.add(activations, rows, target_TH)

    def _suitable(self, activations: BlockActivations) -> ExhaustiveSubsetSearch | GreedySubsetSearch:
        rerouter = Rerouter(self.block, activations)
        by_rank = routes_by_rank(self.block, rerouter, activations)
        if self.block.expert_count <= (ENUMERABLE if by_rank else ENUMERABLE_ONE_BY_ONE):
            return ExhaustiveSubsetSearch(self.block, rerouter, by_rank)
        return GreedySubsetSearch(self.block, rerouter, by_rank, self.blocks)

    @property
    def wants_every_expert(self) -> bool:
        """Whether `add` reads the outputs of all experts for all tokens: what enumerates does; the first batch decides."""
        return self.block.expert_count <= ENUMERABLE and not isinstance(self.search, GreedySubsetSearch)

    def result(self, keeps: Sequence[int]) -> BlockSearchResult:
        """The best set of each size, over the batches of all ranks; every rank must call it."""
        kinds = [kind for kind in gather(self.search.kind if self.search else None) if kind]
        if not kinds:
            raise PollardError("The reconstruction search saw no tokens: the batches are empty.", code="calibration.no-tokens")
        if self.search is None:  # this rank had no batches; the others need it to add up
            self.search = KINDS[kinds[0]](self.block, None, True)
        best = self.search.best_subsets(keeps)
        searched = self.search.used if isinstance(self.search, GreedySubsetSearch) else self.tokens
        return BlockSearchResult(kinds[0], sum(gather(self.tokens)), sum(gather(searched)), best)


class LayerwiseSearch(Observer):
    """Searches every block by itself; `results` after the pass."""

    def __init__(self, blocks: Sequence[MoEBlock]) -> None:
        self.searches = {block.name: BlockSearch(block, len(blocks)) for block in blocks}

    def wants_every_expert(self, block: str) -> bool:
        return self.searches[block].wants_every_expert

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        self.searches[activations.block].add(activations, batch.rows.real)

    def results(self) -> dict[str, BlockSearchResult]:
        """Per block, for every number of experts from the model's top k to all."""
        return {name: search.result(searchable_keeps(search.block)) for name, search in self.searches.items()}


class ProgressiveSearch(ProgressiveObserver):
    """Chooses `keep` experts of each block before the pruned model's passes go on to the next layer. A layerwise pass with
    it calls `on_pruned_batch` and `pruned_layer`, too."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.results: dict[str, BlockSearchResult] = {}
        self.searches: dict[str, BlockSearch] = {}  # of the layer at work
        self.finite: dict[str, torch.Tensor] = {}  # whether its targets are, bool []
        self.targets: dict[str, torch.Tensor] = {}  # y [T, H] of the batch at work, per block

    def on_layer_start(self, blocks: Sequence[MoEBlock]) -> None:
        self.searches = {block.name: BlockSearch(block) for block in blocks}
        self.finite = {}

    def wants_every_expert_when_pruned(self, block: str) -> bool:
        return self.searches[block].wants_every_expert

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        self.targets[activations.block] = activations.routed_TH

    def on_pruned_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        """The same block and batch, on what the pruned model passes on, before any expert of it is removed."""
        name, rows = activations.block, batch.rows.real
        target_TH = self.targets.pop(name)
        finite = target_TH[rows].isfinite().all()
        if name not in self.finite:  # nor is its first batch's what a search could begin with
            self._check_finite(name, finite)
        self.finite[name] = finite & self.finite.get(name, finite)
        self.searches[name].add(activations, rows, target_TH)

    def on_layer_end(self) -> None:
        self.targets = {}
        for name, finite in self.finite.items():  # not batch by batch: each look waits for the device
            self._check_finite(name, finite)
        for name, search in self.searches.items():
            self.results[name] = search.result([self.keep])

    def _check_finite(self, block: str, finite: torch.Tensor) -> None:
        if not finite:
            raise PollardError(
                f"The experts' outputs are not finite ({block}). Try model.dtype=float32.", code="calibration.not-finite"
            )

    @contextmanager
    def pruned_layer(self) -> Iterator[None]:
        """The layer's blocks with the chosen experts only."""
        with ExitStack() as stack:
            for name, search in self.searches.items():
                stack.enter_context(restricted(search.block, self.results[name].keep[self.keep].kept))
            yield


def searchable_keeps(block: MoEBlock) -> list[int]:
    return list(range(block.experts_per_token, block.expert_count + 1))


def check_progressive_keep(keep: int | None, experts: int, experts_per_token: int) -> int:
    """`keep`, where progressive mode can search it; raises PollardError elsewhere."""
    if keep is None or not experts_per_token <= keep <= experts:
        raise PollardError(
            f"Progressive reconstruction is one pass per number of kept experts: say keep={experts_per_token}…{experts} "
            f"(given: {keep}).",
            code="calibration.progressive-keep",
        )
    return keep
