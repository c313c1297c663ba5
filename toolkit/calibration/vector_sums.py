"""Statistics while they are added up: over batches on one rank, then over ranks."""

from collections.abc import Mapping

import torch

from toolkit.cuts.statistics import is_maximum
from toolkit.runtime.distributed import gather


class VectorSums:
    """Float64 vectors by their name in ExpertStatistics, on the model's device until `reduced`."""

    def __init__(self) -> None:
        self.vectors: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.vectors

    def add(self, vectors: Mapping[str, torch.Tensor]) -> None:
        for name, vector in vectors.items():
            if name not in self.vectors:
                self.vectors[name] = vector.contiguous()
            elif is_maximum(name):
                self.vectors[name] = torch.maximum(self.vectors[name], vector)
            else:
                self.vectors[name] = self.vectors[name] + vector

    def reduced(self) -> dict[str, torch.Tensor]:
        """The totals over all ranks, on CPU. Ranks exchange one block at a time, for channels are many. All must call it."""
        mine, self.vectors = self.vectors, {}
        blocks: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for names in gather(list(mine)) for name in names):  # a rank without batches has none
            blocks.setdefault(name.rsplit("/", 2)[0], []).append(name)
        for names in blocks.values():
            for vectors in gather({name: mine.pop(name).cpu() for name in names if name in mine}):
                self.add(vectors)
        return self.vectors
