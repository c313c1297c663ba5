"""The additive statistics: what every scoring criterion is made of, in one pass.

For token t and expert e with gate weight g and unweighted output f (docs/methods.md):

    count           tokens routed to e              gate_sum         sum of g
    norm_sum        sum of ||f||                    gated_norm_sum   sum of g ||f||
    max_norm        largest ||f||

Shape legend: T tokens, K experts per token, E experts.
"""

import torch

from toolkit.distributed import gather
from toolkit.expert_statistics import MAXIMA, PARTS
from toolkit.moe import MoEBlock, Seen


class Totals:
    """A watcher that adds up; `mask` must be set before every forward pass.

    Everything is float64, on the model's device, and leaves it once, at the end.
    """

    def __init__(self, blocks: list[MoEBlock]) -> None:
        self.experts = {block.name: block.expert_count for block in blocks}
        self.vectors: dict[str, torch.Tensor] = {}
        self.mask: dict[str, torch.Tensor] = {}  # "prompt" and "completion": which flattened tokens [T] are which

    def __call__(self, seen: Seen) -> None:
        norms = torch.linalg.vector_norm(seen.outputs_TKH, dim=-1, dtype=torch.float64)
        gates = seen.gate_TK.double()
        routed = gates != 0  # Zaya's token that skips stands as expert 0 with weight 0
        norms = norms * routed
        values_TK = {
            "count": routed.double(),
            "gate_sum": gates,
            "norm_sum": norms,
            "gated_norm_sum": gates * norms,
            "max_norm": norms,
        }
        for part in PARTS:
            rows = self.mask[part]
            index = seen.index_TK[rows].flatten()
            for statistic, value_TK in values_TK.items():
                name = f"{seen.block}/{statistic}/{part}"
                if name not in self.vectors:
                    self.vectors[name] = gates.new_zeros(self.experts[seen.block])
                how = "amax" if statistic in MAXIMA else "sum"
                self.vectors[name].scatter_reduce_(0, index, value_TK[rows].flatten(), reduce=how)

    def reduced(self) -> dict[str, torch.Tensor]:
        """The totals over all ranks, on CPU."""
        mine = {name: vector.cpu() for name, vector in self.vectors.items()}
        every = [vectors for vectors in gather(mine) if vectors]  # a rank without batches has none
        total = every[0] if every else {}
        for vectors in every[1:]:
            for name, vector in vectors.items():
                maximum = name.split("/")[-2] in MAXIMA
                total[name] = torch.maximum(total[name], vector) if maximum else total[name] + vector
        return total
