"""What calibration observed of one MoE block, for a criterion of the user's own.

    def peak_per_token(block: toolkit.ObservedBlock):
        return block["max_norm"] / block["count"].clamp(min=1)

    toolkit.select(statistics, criterion=peak_per_token, keep=4)

Shape legend: E experts of a block, W width (channels of an expert).
"""

from dataclasses import dataclass

import torch

from toolkit.cuts.statistics import PARTS, WEIGHTS, ExpertStatistics, Tokens
from toolkit.runtime.display import Displayed, Overview


@dataclass(frozen=True, repr=False)
class ObservedBlock(Displayed):
    """One block of `statistics`: `block["count"]` is a statistic over the tokens that count (`tokens`), float64 [E]."""

    statistics: ExpertStatistics
    name: str
    tokens: Tokens = "all"

    @property
    def experts(self) -> int:
        """E."""
        return self.statistics.about.blocks[self.name].experts

    @property
    def experts_per_token(self) -> int:
        return self.statistics.about.blocks[self.name].experts_per_token

    @property
    def observed(self) -> list[str]:
        """What can be asked for: the names of docs/methods.md."""
        needed = set(PARTS if self.tokens == "all" else (self.tokens,))
        return sorted(name for name, parts in self._parts().items() if WEIGHTS in parts or needed <= parts)

    def __getitem__(self, statistic: str) -> torch.Tensor:
        """A copy of one statistic, float64 [E]; of channels [E, W]. Raises PollardError where it was not observed."""
        if WEIGHTS in self._parts().get(statistic, ()):
            return self.statistics.of_weights(self.name, statistic).clone()
        return self.statistics.get(self.name, statistic, self.tokens).clone()

    def _parts(self) -> dict[str, set[str]]:
        """By statistic, of which tokens it is held, or that it is one of the weights."""
        parts: dict[str, set[str]] = {}
        for key in self.statistics.vectors:
            block, statistic, part = key.rsplit("/", 2)
            if (block.split("/", 1)[1] if self.statistics.about.sources else block) == self.name:
                parts.setdefault(statistic, set()).add(part)
        return parts

    def overview(self) -> Overview:
        vectors = {name: vector.tolist() for name in self.observed if (vector := self[name]).ndim == 1}
        rows = [(str(expert), *(f"{vector[expert]:.4g}" for vector in vectors.values())) for expert in range(self.experts)]
        facts = [self.name, f"{self.experts} experts", f"{self.tokens} tokens"]
        return Overview(facts, ("expert", *vectors), rows)
