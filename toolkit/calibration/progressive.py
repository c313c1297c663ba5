"""Progressive mode of the reconstruction search: layer by layer, each block chosen for what the pruned blocks before it
really pass on, against the original model's output on its own inputs.

Two forward passes per batch walk side by side, the original's and the pruned model's; one walk per `keep`.

Shape legend: T tokens, H hidden size.
"""

from contextlib import ExitStack
from typing import Any

import torch

from toolkit.calibration.observer import Mask
from toolkit.calibration.reconstruction import BlockSearch
from toolkit.moe import BlockActivations, ForwardPass, MoEBlock, restricted
from toolkit.runtime.errors import PollardError


class ProgressiveSearch:
    """A watcher for the walk (`toolkit.calibration.layerwise_pass`), which calls the rest, too. Every rank must take part."""

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


def check_keep(keep: int | None, experts: int, experts_per_token: int) -> int:
    """`keep`, if it makes sense for progressive mode; raises PollardError."""
    if keep is None or not experts_per_token <= keep <= experts:
        raise PollardError(
            f"Progressive reconstruction is one pass per number of kept experts: say keep={experts_per_token}…{experts} "
            f"(given: {keep})."
        )
    return keep
