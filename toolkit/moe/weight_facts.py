"""What the weights of experts say by themselves, without any token.

Norms are taken of one row or column at a time in at least float32, and added up in float64: in float64 throughout they would take
as long as a forward pass. Weights must be there: where they are streamed or partitioned, that is while the experts run.

Shape legend: E experts, W width (channels).
"""

import torch
from torch import nn

from toolkit.moe.channels import ChannelAxis


def mean_over_rms(experts: nn.Module) -> torch.Tensor:
    """mean|w| / rms(w) over all weights of each expert (biases are none) [E], float64 (AIMER, arXiv 2603.18492).

    In (0, 1]: small where few large weights carry the expert, 1 where all are equally large, and for an expert of zeros.
    """
    count: int = experts.num_experts  # type: ignore[assignment]
    fused = [p.detach() for p in experts.parameters(recurse=False) if p.ndim == 3 and len(p) == count]
    numbers = sum(weights[0].numel() for weights in fused)
    absolute, squares = (
        torch.stack(
            [torch.cat([_norms(weights[expert], order, -1) for weights in fused]).pow(order).sum() for expert in range(count)]
        )
        for order in (1, 2)
    )
    return torch.where(squares > 0, absolute / (numbers * squares).sqrt(), 1.0)


def channel_norms(weight: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
    """Of an expert's or MLP's every channel the norm of its row (column) in `weight`, float64 [E, W] or [W]; where a fused
    projection holds two rows of a channel, its gate's and its up projection's, the product of both norms."""
    across = -1 if axis.axis == weight.ndim - 2 else -2
    matrices = weight.detach().unbind(0) if weight.ndim == 3 else [weight.detach()]
    norms = torch.stack([_norms(matrix, 2, across) for matrix in matrices])
    channel_of_row = axis.channel_of_row.to(norms.device).expand(norms.shape)
    product = norms.new_ones(len(norms), int(axis.channel_of_row.max()) + 1)
    product.scatter_reduce_(1, channel_of_row, norms, "prod")
    return product if weight.ndim == 3 else product[0]


def _norms(matrix: torch.Tensor, order: int, across: int) -> torch.Tensor:
    """Of the rows (across = -1) or columns (-2) of a matrix."""
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    return torch.linalg.vector_norm(wide, order, dim=across).double()
