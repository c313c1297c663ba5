"""How far a block's output moves when its tokens are routed otherwise, from inner products of expert outputs alone.

For a token with expert outputs F = [f_1 … f_E], gate weights g over all experts and g' over a subset, and the target y
(the original model's output; in layerwise mode y = F g):

    || F g' - y ||^2  =  c^T G c - 2 c^T a + b,     c = g' - g,  G = F^T F,  a = F^T d,  b = ||d||^2,  d = y - F g

d is the error that earlier, already pruned blocks have caused: zero in layerwise mode. Nothing of hidden size is left,
and a token costs (2K)^2 products, for c has at most 2K entries that are not zero. In float64: small errors are
differences of large numbers. (docs/methods.md; NAEE, arXiv 2402.14800, evaluates the experts anew for every subset instead.)

Shape legend: T tokens, R of them chosen by `rows`, E experts, K experts per token, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from toolkit.moe import BlockActivations, all_expert_outputs

# Of all experts' outputs at a time. On a GPU a chunk costs some 1,500 kernels, whatever its size: few large ones
CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**31}


@dataclass
class TokenErrors:
    """`errors(index [R, K], gate [R, K], rows [R])` are the squared errors [R] of that routing, float64."""

    gram_TEE: torch.Tensor
    index_TK: torch.Tensor  # routing over all experts
    gate_TK: torch.Tensor
    inherited_TE: torch.Tensor | None = None  # a
    inherited_T: torch.Tensor | None = None  # b

    def __call__(self, index_RK: torch.Tensor, gate_RK: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        experts = self.gram_TEE.shape[-1]
        # An expert in both choices stands here twice: a quadratic form adds the two entries up by itself
        index = torch.cat([index_RK, self.index_TK[rows]], 1)
        c = torch.cat([gate_RK.double(), -self.gate_TK[rows].double()], 1)
        where = rows.view(-1, 1, 1) * experts**2 + index.unsqueeze(2) * experts + index.unsqueeze(1)
        error = ((self.gram_TEE.take(where).double() @ c.unsqueeze(2)).squeeze(2) * c).sum(1)
        if self.inherited_TE is not None and self.inherited_T is not None:
            error += self.inherited_T[rows] - 2 * (self.inherited_TE[rows].gather(1, index) * c).sum(1)
        return error.clamp(min=0)


def token_errors(
    activations: BlockActivations, rows: torch.Tensor, experts: int, target_TH: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, TokenErrors]]:
    """The tokens `rows` of a batch in chunks, each with its errors; `target_TH` (all of the batch's tokens) is y where it
    is not this batch's own output."""
    size = max(1, CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cpu"]) // (8 * experts * activations.outputs_TKH.shape[-1]))
    for chunk in rows.split(size):
        F_TEH = all_expert_outputs(activations, chunk, experts).double()
        index_TK, gate_TK = activations.index_TK[chunk], activations.gate_TK[chunk]
        errors = TokenErrors(F_TEH @ F_TEH.mT, index_TK, gate_TK)
        if target_TH is not None:
            d_TH = target_TH[chunk].double() - activations.routed_TH[chunk].double()
            errors.inherited_TE = (F_TEH @ d_TH.unsqueeze(2)).squeeze(2)
            errors.inherited_T = (d_TH**2).sum(1)
        yield chunk, errors
