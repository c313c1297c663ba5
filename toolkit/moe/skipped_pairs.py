"""Which pairs of token and expert are skipped, and the experts' outputs without them.

Of two experts, the second is skipped where its gate weight g2 < β·g1 (NAEE, arXiv 2402.14800, section 4). Of more, the fewest
stay beyond which no more than the share β of the token's gate weights lies (its appendix): the smallest i with
g_(i+1) + … + g_K ≤ β·(g_1 + … + g_K). What stays is scaled up to the sum that was there before, so that a family's own scaling
holds (Gemma 4's may make a gate weight negative: its size is meant). A gate weight that is no number skips nothing.

There are two ways of not computing a pair, and each fits one kind of device:

    gathered   the pairs that stay are picked out, and become tokens of one expert each for the implementation that the model had
               before. How many they are decides the shape of everything after: a GPU would have to wait for that number
    grouped    skipped pairs get the index behind the last expert, are sorted behind all others, and lie beyond the last group
               of the grouped product: it neither multiplies them nor reads a weight for them. All shapes are known beforehand:
               nothing waits, and torch.compile takes it as one graph

Shape legend: T tokens, K experts per token, P = T · K pairs, E experts, H hidden size, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear

# What transformers runs on a GPU unless told otherwise: grouped products, and for decoding in `generate` batched ones, which
# copy the weights of every pair. Another implementation was somebody's choice, and computes what stays
GROUPED = ("grouped_mm", "batched_mm")


@dataclass
class SkipRule:
    """How one experts module skips."""

    beta: float
    before: str  # the implementation that the model had
    observer: Callable[[torch.Tensor], None] | None = None  # called with which pairs are skipped, bool [T, K]


def set_rule(experts: nn.Module, rule: SkipRule | None) -> None:
    """None: the experts skip no longer. The threshold is also a buffer on the experts' device, which no checkpoint holds:
    float64, kept as the whole number of the same bits, since `model.to(torch.bfloat16)` rounds every float."""
    module: Any = experts
    if rule is None:
        del module.skipping, module.skipping_threshold
        return
    device = next(experts.parameters()).device
    bits = torch.tensor([rule.beta], dtype=torch.float64).view(torch.int64)
    experts.register_buffer("skipping_threshold", bits.to("cpu" if device.type == "meta" else device), persistent=False)
    module.skipping = rule


def threshold_of(experts: nn.Module) -> torch.Tensor:
    """β, float64 [1]: of one dimension, so that what is compared with it becomes float64 inside the same operation."""
    return cast(torch.Tensor, experts.skipping_threshold).view(torch.float64)


def gate_ratios(gate_TK: torch.Tensor) -> torch.Tensor:
    """What β is compared with, float64: for two experts g2 / g1 [T, 1]; for more [T, K − 1], per i < K the share of the gate
    weights beyond the i largest. Not a number where a token has no gate weight at all."""
    sorted_TK = gate_TK.double().abs().sort(dim=1, descending=True).values
    if gate_TK.shape[1] == 2:
        return sorted_TK[:, 1:] / sorted_TK[:, :1]
    beyond_TK = sorted_TK.flip(1).cumsum(1).flip(1)
    return beyond_TK[:, 1:] / beyond_TK[:, :1]


def skipped_pairs(gate_TK: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Which pairs are skipped, bool [T, K]; of every token at least one is not. `beta`: float64 [1]."""
    size_TK = gate_TK.abs()
    if gate_TK.shape[1] == 1:
        return torch.zeros_like(size_TK, dtype=torch.bool)
    if gate_TK.shape[1] == 2:  # the larger one is never below β ≤ 1 times the smaller
        return size_TK < size_TK.flip(1) * beta
    # From the smallest on, of equals the last first: at i the sum of all from the i-th largest on, and at the end of all
    sorted_TK, order_TK = size_TK.flip(1).sort(dim=1, stable=True)
    beyond_TK = sorted_TK.cumsum(1, dtype=torch.float64)
    skip_TK = beyond_TK <= beyond_TK[:, -1:] * beta
    skip_TK[:, -1] = False
    return torch.zeros_like(skip_TK).scatter_(1, order_TK, skip_TK).flip(1)


def renormalized_gates(gate_TK: torch.Tensor, stay_TK: torch.Tensor) -> torch.Tensor:
    """The gate weights [T, K] of the pairs that stay, scaled to the sum that all had."""
    size_TK = gate_TK.double().abs()
    before_T1, after_T1 = size_TK.sum(1, keepdim=True), (size_TK * stay_TK).sum(1, keepdim=True)
    return (gate_TK * stay_TK * torch.where(after_T1 > 0, before_T1 / after_T1, 1.0)).to(gate_TK.dtype)


def skipping_forward(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
    """The experts implementation: weighted outputs [T, H] of the pairs that stay."""
    rule = cast(SkipRule, experts.skipping)
    skip_TK = skipped_pairs(gate_TK, threshold_of(experts))
    if rule.observer:
        rule.observer(skip_TK)
    if is_grouped(hidden_TH.device, rule.before):
        return grouped_forward(experts, hidden_TH, index_TK, gate_TK, skip_TK)
    run = ALL_EXPERTS_FUNCTIONS.get_interface(rule.before, cast(Any, type(experts).forward).__wrapped__)
    return gathered_forward(run, experts, hidden_TH, index_TK, gate_TK, ~skip_TK)


def is_grouped(device: torch.device, before: str) -> bool:
    """A CPU has its numbers at once, and gains by doing nothing for what is skipped."""
    return device.type != "cpu" and before in GROUPED


def gathered_forward(
    run: Callable[..., torch.Tensor],
    experts: nn.Module,
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    gate_TK: torch.Tensor,
    stay_TK: torch.Tensor,
) -> torch.Tensor:
    """Weighted outputs [T, H], by another implementation that gets the pairs that stay alone."""
    pairs_P = stay_TK.flatten().nonzero().flatten()
    tokens, k = index_TK.shape
    if len(pairs_P) == tokens * k:
        return run(experts, hidden_TH, index_TK, gate_TK)
    index_P, gate_P = index_TK.flatten()[pairs_P], renormalized_gates(gate_TK, stay_TK).flatten()[pairs_P]
    outputs_PH = run(experts, hidden_TH[pairs_P // k], index_P.unsqueeze(1), gate_P.unsqueeze(1))
    if len(pairs_P) == tokens:
        return outputs_PH
    # Not index_add_, which on a GPU adds in any order
    spread = outputs_PH.new_zeros(tokens * k, outputs_PH.shape[1]).index_copy_(0, pairs_P, outputs_PH)
    return spread.view(tokens, k, -1).sum(1)


def grouped_forward(
    experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor, skip_TK: torch.Tensor
) -> torch.Tensor:
    """Weighted outputs [T, H], by one grouped product over all pairs. What transformers' own `grouped_mm` does for experts that
    lie on another rank, in fewer operations: a decoded token has so little to multiply that their number is what it costs."""
    module: Any = experts
    tokens, k = index_TK.shape
    count = module.num_experts
    index_P, order_P = index_TK.masked_fill(skip_TK, count).flatten().sort()
    ends_E = torch.searchsorted(index_P, torch.arange(count, device=index_P.device), right=True, out_int32=True)
    rows_PH = hidden_TH[order_P // k]
    if rows_PH.requires_grad:  # the product leaves the gradient of what it skips as it finds it
        rows_PH = rows_PH.masked_fill((index_P == count).unsqueeze(1), 0)
    bias_P = index_P.clamp(max=count - 1) if module.has_bias else None  # whatever a skipped row gets

    def product(name: str, input_P: torch.Tensor) -> torch.Tensor:
        bias = None if bias_P is None else getattr(module, f"{name}_bias")[bias_P]
        return _grouped_linear(input_P, getattr(module, name), ends_E, bias, module.is_transposed)

    up_PW = product("gate_up_proj" if module.has_gate else "up_proj", rows_PH)
    outputs_PH = product("down_proj", module._apply_gate(up_PW) if module.has_gate else module.act_fn(up_PW))
    if module.has_post_expert_norm:
        outputs_PH = module.post_expert_norm(outputs_PH)
    outputs_TKH = torch.empty_like(outputs_PH).index_copy_(0, order_P, outputs_PH).view(tokens, k, -1)
    # Filled, not multiplied with 0: rows that were not computed hold anything, also what is no number
    outputs_TKH = outputs_TKH.masked_fill(skip_TK.unsqueeze(2), 0)
    return (outputs_TKH * _scaled_gates(gate_TK, skip_TK).unsqueeze(2)).sum(1).to(hidden_TH.dtype)


def _scaled_gates(gate_TK: torch.Tensor, skip_TK: torch.Tensor) -> torch.Tensor:
    """As `renormalized_gates`, with anything for skipped pairs; in float32 where the gate weights have fewer digits."""
    gate_TK = gate_TK.to(torch.promote_types(gate_TK.dtype, torch.float32))
    before_T1 = torch.linalg.vector_norm(gate_TK, 1, dim=1, keepdim=True)
    if gate_TK.shape[1] == 2:  # the one that stays takes over what both had
        return torch.where(skip_TK.flip(1), before_T1.copysign(gate_TK), gate_TK)
    after_T1 = torch.linalg.vector_norm(gate_TK.masked_fill(skip_TK, 0), 1, dim=1, keepdim=True)
    return gate_TK * (before_T1 / after_T1.clamp(min=torch.finfo(gate_TK.dtype).tiny))
