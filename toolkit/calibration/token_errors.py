"""How far a block's output moves when its tokens are routed otherwise, from inner products of expert outputs alone.

For a token with expert outputs F = [f_1 … f_E], gate weights g over all experts and g' over a subset, and the target y
(the original model's output; in layerwise mode y = F g):

    || F g' - y ||^2  =  c^T G c - 2 c^T a + b,     c = g' - g,  G = F^T F,  a = F^T d,  b = ||d||^2,  d = y - F g

d is the error that earlier, already pruned blocks have caused: zero in layerwise mode. Nothing of hidden size is left,
and a token costs (2K)^2 products, for c has at most 2K entries that are not zero. Where all choices of K experts are asked
about, the same number comes from g' alone (`of_choices`; p and q once per token, then K^2 products for each choice):

    || F g' - y ||^2  =  g'^T G g' - 2 g'^T p + q,     p = G g + a,  q = g^T (G g + 2 a) + b

(docs/methods.md; NAEE, arXiv 2402.14800, evaluates the experts anew for every subset instead.)

What is float64, and why: small errors are differences of large numbers, so G is added up where a product of two outputs is
exact (float32 outputs in float64, 16-bit outputs in float32: PRODUCTS), and everything behind it is float64, which costs
little, for it has no hidden size. Measured with 8 random experts of hidden size 256 (tests/calibration/test_token_errors.py):
with G in float32 a loss is 5e-9 of itself off, but 0.8 % where experts are copies of each other up to 1e-3; with G in float64
1e-15 and 2e-10.

Shape legend: T tokens, R of them chosen by `rows`, C choices of K experts, E experts, K experts per token, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from toolkit.moe import BlockActivations, every_expert_outputs

# Of all experts' outputs at a time. On a GPU a chunk costs some 200 kernels, whatever its size: few large ones
CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**31}
# Of them as G's products are taken: on a CPU they stay in its cache
GRAM_CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**30}
PRODUCTS = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # others: float64


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

    def of_choices(self, index_CKT: torch.Tensor, gate_CKT: torch.Tensor) -> torch.Tensor:
        """The squared errors [C, T] of C routings of all tokens, float64: few operations, each on long rows of tokens."""
        gram_TEE, experts = self.gram_TEE.double(), self.gram_TEE.shape[-1]
        g_TE = torch.zeros_like(gram_TEE[:, 0]).scatter_add_(1, self.index_TK, self.gate_TK.double())
        p_TE = (gram_TEE @ g_TE.unsqueeze(2)).squeeze(2)
        q_T = (p_TE * g_TE).sum(1)
        if self.inherited_TE is not None and self.inherited_T is not None:
            q_T += 2 * (self.inherited_TE * g_TE).sum(1) + self.inherited_T
            p_TE = p_TE + self.inherited_TE
        gram_XT, p_ET, gates = gram_TEE.flatten(1).T.contiguous(), p_TE.T.contiguous(), gate_CKT.double()
        error_CT = q_T.repeat(len(index_CKT), 1)
        for one in range(index_CKT.shape[1]):
            inner_CT = -2 * p_ET.gather(0, index_CKT[:, one])
            for other in range(one + 1):
                product_CT = gram_XT.gather(0, index_CKT[:, one] * experts + index_CKT[:, other]).mul_(gates[:, other])
                inner_CT.add_(product_CT, alpha=1 if other == one else 2)
            error_CT.addcmul_(inner_CT, gates[:, one])
        return error_CT.clamp_(min=0)


def token_errors(
    activations: BlockActivations, rows: torch.Tensor, experts: int, target_TH: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, TokenErrors]]:
    """The tokens `rows` of a batch in chunks, each with its errors; `target_TH` (all of the batch's tokens) is y where it
    is not this batch's own output."""
    size = max(1, CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cpu"]) // (8 * experts * activations.outputs_TKH.shape[-1]))
    every = activations.every if activations.every and activations.every.rows is rows else None
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        if every:
            F_TEH = every.outputs_REH[start : start + size]
        else:
            F_TEH = every_expert_outputs(activations.experts, activations.hidden_TH[chunk], experts)
        errors = TokenErrors(inner_products(F_TEH), activations.index_TK[chunk], activations.gate_TK[chunk])
        if target_TH is not None:
            d_TH = target_TH[chunk].double() - activations.routed_TH[chunk].double()
            errors.inherited_TE = _products_with(F_TEH, d_TH)
            errors.inherited_T = (d_TH**2).sum(1)
        yield chunk, errors


def inner_products(F_TEH: torch.Tensor) -> torch.Tensor:
    """G [T, E, E], in the precision in which a product of two outputs is exact."""
    wide = PRODUCTS.get(F_TEH.dtype, torch.float64)
    chunks = (part.to(wide) for part in F_TEH.split(_gram_chunk(F_TEH)))
    return torch.cat([part @ part.mT for part in chunks])


def _products_with(F_TEH: torch.Tensor, d_TH: torch.Tensor) -> torch.Tensor:
    """F^T d [T, E], float64."""
    size = _gram_chunk(F_TEH)
    pairs = zip(F_TEH.split(size), d_TH.unsqueeze(2).split(size), strict=True)
    return torch.cat([(part.double() @ d).squeeze(2) for part, d in pairs])


def _gram_chunk(F_TEH: torch.Tensor) -> int:
    """Tokens whose products are taken at a time."""
    limit = GRAM_CHUNK_BYTES.get(F_TEH.device.type, GRAM_CHUNK_BYTES["cpu"])
    return max(1, limit // (8 * F_TEH.shape[1] * F_TEH.shape[2]))
