"""NAEE's reconstruction search (arXiv 2402.14800) while the experts' outputs are in memory.

`LayerwiseSearch` is a watcher for layerwise mode: inputs and targets of every block are those of the original model, so
one pass serves every `keep`. progressive.py goes layer by layer instead.

What it leaves in statistics.json, per mode (docs/files.md):

    {"layerwise": {"model.layers.0.mlp": {"search": "exhaustive", "tokens": 1024,
        "keep": {"4": {"kept": [0, 2, 5, 7], "loss": 12.3, "table": {"0,1,2,3": 45.6, …}}, …}}}}

Progressive mode of the reconstruction search: layer by layer, each block chosen for what the pruned blocks before it
really pass on, against the original model's output on its own inputs.

Two forward passes per batch walk side by side, the original's and the pruned model's; one walk per `keep`.

Shape legend: T tokens, H hidden size.
"""

from contextlib import ExitStack
from typing import Any

import torch

from toolkit.calibration.exhaustive_search import ExhaustiveSubsetSearch, routes_by_rank
from toolkit.calibration.greedy_search import GreedySubsetSearch
from toolkit.calibration.observer import Mask
from toolkit.moe import BlockActivations, ForwardPass, MoEBlock, Rerouter, restricted
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError

ENUMERABLE = 16  # experts, where a token's errors go by the rank of its experts (see every_subset)
ENUMERABLE_ONE_BY_ONE = 10

EXHAUSTIVE, GREEDY = "exhaustive", "greedy and swaps"


class BlockSearch:
    """The search in one block; the first batch decides how. Every rank must call `found`."""

    def __init__(self, block: MoEBlock, blocks: int = 1) -> None:
        self.block, self.blocks = block, blocks
        self.tokens = 0
        self.losses: ExhaustiveSubsetSearch | GreedySubsetSearch | None = None

    def add(self, seen: BlockActivations, rows: torch.Tensor, target_TH: torch.Tensor | None = None) -> None:
        """One batch's tokens `rows`; `target_TH` is the original block's output where it is not this batch's own."""
        if not len(rows):
            return
        if self.losses is None:
            self.losses = self._suited(seen)
        self.tokens += len(rows)
        self.losses.add(seen, rows.to(seen.index_TK.device), target_TH)  # a model may be spread over several devices

    def _suited(self, seen: BlockActivations) -> ExhaustiveSubsetSearch | GreedySubsetSearch:
        rerouter = Rerouter(self.block, seen)
        by_rank = routes_by_rank(self.block, rerouter, seen)
        if self.block.expert_count <= (ENUMERABLE if by_rank else ENUMERABLE_ONE_BY_ONE):
            return ExhaustiveSubsetSearch(self.block, rerouter, by_rank)
        return GreedySubsetSearch(self.block, rerouter, by_rank, self.blocks)

    def _kind(self) -> str | None:
        if self.losses is None:
            return None
        return EXHAUSTIVE if isinstance(self.losses, ExhaustiveSubsetSearch) else GREEDY

    def found(self, keeps: list[int]) -> dict[str, Any]:
        """How was searched, over how many tokens, and per number of kept experts what was found."""
        kinds = [kind for kind in gather(self._kind()) if kind]
        if not kinds:
            raise PollardError("The reconstruction search saw no tokens: the batches are empty.")
        if self.losses is None:  # this rank had no batches; the others need it to add up
            nothing: Any = None
            self.losses = (ExhaustiveSubsetSearch if kinds[0] == EXHAUSTIVE else GreedySubsetSearch)(self.block, nothing, True)
        found = self.losses.found(keeps)
        used = self.losses.used if isinstance(self.losses, GreedySubsetSearch) else self.tokens
        return {
            "search": kinds[0],
            "tokens": sum(gather(self.tokens)),
            "tokens_searched": sum(gather(used)),
            "keep": found,
        }


class LayerwiseSearch:
    """The watcher for layerwise mode; `begin` before every forward pass, `found` after the last."""

    def __init__(self, blocks: list[MoEBlock]) -> None:
        self.searches = {block.name: BlockSearch(block, len(blocks)) for block in blocks}
        self.rows = torch.zeros(0, dtype=torch.long)

    def begin(self, mask: dict[str, torch.Tensor]) -> None:
        """`mask`: which of the coming batch's flattened tokens [T] are "prompt" and which "completion"; padding is neither."""
        self.rows = torch.stack(list(mask.values())).any(0).nonzero().flatten()

    def __call__(self, seen: BlockActivations) -> None:
        self.searches[seen.block].add(seen, self.rows)

    def found(self) -> dict[str, Any]:
        """Per block what was found, for every number of experts from the model's top k to all."""
        return {name: search.found(searchable_keeps(search.block)) for name, search in self.searches.items()}


def searchable_keeps(block: MoEBlock) -> list[int]:
    return list(range(block.experts_per_token, block.expert_count + 1))


class ProgressiveSearch:
    """A watcher for the walk (`toolkit.calibration.passes`), which calls the rest, too. Every rank must take part."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.found: dict[str, dict[str, Any]] = {}  # per block, for `keep` experts
        self.pruned: list[ForwardPass] = []
        self.searches: dict[str, BlockSearch] = {}  # of the layer at hand
        self.seen: dict[str, BlockActivations] = {}
        self.rows = torch.zeros(0, dtype=torch.long)

    def follow(self, forward_pass: ForwardPass) -> None:
        """The next batch's second forward pass, which becomes the pruned model's."""
        self.pruned.append(forward_pass)

    def enter(self, blocks: list[MoEBlock]) -> None:
        """The walk comes to the layer of these blocks."""
        self.searches = {block.name: BlockSearch(block) for block in blocks}

    def begin(self, mask: Mask) -> None:
        self.rows = (mask["prompt"] | mask["completion"]).nonzero().flatten()

    def __call__(self, seen: BlockActivations) -> None:
        self.seen[seen.block] = seen

    def compare(self, number: int) -> None:
        """The original has run over batch `number`: runs its blocks on the pruned model's inputs."""
        targets_TH = {name: seen.routed_TH for name, seen in self.seen.items()}
        self.seen = {}
        if self.searches:
            self.pruned[number].output()
            self.pruned[number].offload()
        for name, seen in self.seen.items():
            if not targets_TH[name][self.rows].isfinite().all():
                raise PollardError(f"The experts' outputs are not finite ({name}). Try model.dtype=float32.")
            self.searches[name].add(seen, self.rows, targets_TH[name])
        self.seen = {}

    def leave(self) -> None:
        """Every batch has been compared: chooses, and lets the pruned model's passes go on with the chosen experts."""
        with ExitStack() as stack:
            for name, search in self.searches.items():
                self.found[name] = search.found([self.keep])
                stack.enter_context(restricted(search.block, self.found[name]["keep"][str(self.keep)]["kept"]))
            for forward_pass in self.pruned:
                forward_pass.resume(forward_pass.output())


def check_progressive_keep(keep: int | None, experts: int, experts_per_token: int) -> int:
    """`keep`, if it makes sense for progressive mode; raises PollardError."""
    if keep is None or not experts_per_token <= keep <= experts:
        raise PollardError(
            f"Progressive reconstruction is one pass per number of kept experts: say keep={experts_per_token}…{experts} "
            f"(given: {keep})."
        )
    return keep
