"""What the weights of a block's experts say by themselves, without any token.

Shape legend: E experts, W width (channels).
"""

import torch
from torch import nn

from toolkit.moe.channels import ChannelAxis

CHUNK_NUMBERS = 2**24  # converted to float64 at a time: 128 MiB


def mean_over_rms(experts: nn.Module) -> torch.Tensor:
    """mean|w| / rms(w) over all weights of each expert (biases are none) [E], float64 (AIMER, arXiv 2603.18492).

    In (0, 1]: small where few large weights carry the expert, 1 where all are equally large, and for an expert of zeros.
    Must be called while the experts run: elsewhere ZeRO-3 and streaming may have taken the weights away.
    """
    count: int = experts.num_experts  # type: ignore[assignment]
    fused = [p for p in experts.parameters(recurse=False) if p.ndim == 3 and len(p) == count]
    sums, squares = (torch.zeros(count, dtype=torch.float64, device=fused[0].device) for _ in range(2))
    for parameter in fused:
        for expert, weights in enumerate(parameter.detach()):
            for chunk in weights.flatten().split(CHUNK_NUMBERS):
                numbers = chunk.double()
                sums[expert] += numbers.abs().sum()
                squares[expert] += (numbers * numbers).sum()
    numbers_each = sum(parameter[0].numel() for parameter in fused)
    return torch.where(squares > 0, sums / (numbers_each * squares).sqrt(), 1.0)


def channel_norms(weight: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
    """Of an expert's or MLP's every channel the norm of its row (column) in `weight`, float64 [E, W] or [W]; where a fused
    projection holds two rows of a channel, its gate's and its up projection's, the product of both norms."""
    rows = []
    across = next(other for other in range(weight.ndim - 1, -1, -1) if other != axis.axis)
    for part in weight.detach().split(max(1, CHUNK_NUMBERS * weight.shape[axis.axis] // weight.numel()), axis.axis):
        rows.append(torch.linalg.vector_norm(part.double(), dim=across))
    norms = torch.cat(rows, -1)
    channel_of_row = axis.channel_of_row.to(norms.device).expand(norms.shape)
    product = norms.new_ones(*norms.shape[:-1], int(axis.channel_of_row.max()) + 1)
    return product.scatter_reduce_(-1, channel_of_row, norms, "prod")
