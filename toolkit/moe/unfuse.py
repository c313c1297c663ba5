"""Experts as linear layers of their own: what bitsandbytes can quantise and PEFT can adapt.

A fused parameter `gate_up_proj [E, 2I, H]` becomes E linear layers `gate_up_linear` (PEFT rewrites adapters of the usual
names, so these are new ones). The experts module stays what it is: its own gating, its activation and its norm are used.

Shape legend: T tokens, E experts, K experts per token, H hidden size, I expert width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import MoEBlock
from toolkit.runtime.errors import PollardError

IMPLEMENTATION = "pollard_unfused"
UNFUSED = "unfused"  # the attribute of the experts module that holds the linear layers, one pair per expert

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]  # weight [out, in], bias [out] -> the layer


def expert_weights(block: MoEBlock) -> tuple[str, str]:
    """The names of the fused weights, into the expert's width and out of it: ("gate_up_proj", "down_proj") in most families.

    Raises PollardError where the experts hold anything else that differs from expert to expert.
    """
    experts: Any = block.experts
    weights = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    expected = {*weights, *(f"{name}_bias" for name in weights if experts.has_bias)}
    found = {name for name, _ in experts.named_parameters(recurse=False)}
    if found != expected:
        raise PollardError(
            f"The experts of {block.name} hold {sorted(found)}, not {sorted(expected)}: they cannot be adapted one by one. "
            "Use finetuning.method full, router or experts.",
            code="model.experts-not-adaptable",
        )
    return weights


def linear_name(weight: str) -> str:
    """The linear layer's name for a fused weight's: gate_up_proj -> gate_up_linear."""
    return weight.removesuffix("proj") + "linear"


def unfuse(model: PreTrainedModel, blocks: list[MoEBlock], make: MakeLinear) -> None:
    """Replaces the fused experts by linear layers that `make` builds, in place, one block after the other."""
    for block in blocks:
        experts: Any = block.experts
        names = expert_weights(block)
        fused = {name: (getattr(experts, name), getattr(experts, f"{name}_bias", None)) for name in names}
        for name in names:
            delattr(experts, name)
            if fused[name][1] is not None:
                delattr(experts, f"{name}_bias")
        layers = [
            nn.ModuleDict(
                {
                    linear_name(name): make(
                        (weight.data[expert].T if experts.is_transposed else weight.data[expert]).contiguous(),
                        None if bias is None else bias.data[expert],
                    )
                    for name, (weight, bias) in fused.items()
                }
            )
            for expert in range(block.expert_count)
        ]
        setattr(experts, UNFUSED, nn.ModuleList(layers))
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
    model.set_experts_implementation(IMPLEMENTATION)


def _forward(experts: Any, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
    """The experts implementation: computes what transformers' `batched_mm_experts_forward` does.

    Every expert is called, also with no token: under ZeRO-3 a call gathers weights from all ranks, and ranks that route
    differently would wait for each other for ever.
    """
    into = linear_name("gate_up_proj" if experts.has_gate else "up_proj")
    pairs = index_TK.flatten()  # pair p is token p // K at its (p % K)-th expert
    order, counts = pairs.argsort(stable=True), pairs.bincount(minlength=experts.num_experts).tolist()
    out_TH = torch.zeros_like(hidden_TH)
    # Indices past the last expert mark skipped tokens
    for layers, pairs_of_expert in zip(getattr(experts, UNFUSED), order.split(counts), strict=False):
        tokens = pairs_of_expert // index_TK.shape[1]
        inner = layers[into](hidden_TH[tokens])
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        found = layers[linear_name("down_proj")](inner)
        if experts.has_post_expert_norm:
            found = experts.post_expert_norm(found)
        out_TH = out_TH.index_add(0, tokens, (found * gate_TK.flatten()[pairs_of_expert, None]).to(out_TH.dtype))
    return out_TH
