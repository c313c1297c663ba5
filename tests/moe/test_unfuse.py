from collections import Counter
from typing import Any

import pytest
import torch
from conftest import raises, tiny_model
from families import EXCEPTIONS, families, text_logits, tiny_family
from torch import nn

from toolkit.moe import UNFUSED, expert_weights, find_blocks, unfuse


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


@pytest.mark.parametrize("family", sorted(set(families()) - set(EXCEPTIONS)))
def test_unfused_experts_compute_what_fused_ones_do(family: str) -> None:
    model = tiny_family(family)
    before = text_logits(model)
    unfuse(model, find_blocks(model), linear)
    torch.testing.assert_close(text_logits(model), before, rtol=1e-4, atol=1e-4)


# Under ZeRO-3 a call gathers weights from all ranks: none may leave one out.
def test_every_expert_is_called_also_without_a_token() -> None:
    model = tiny_model("mixtral")
    block = find_blocks(model)[0]
    unfuse(model, find_blocks(model), linear)
    calls: Counter[nn.Module] = Counter()
    layers = [module for module in block.experts.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: calls.update([module]))
    hidden = torch.randn(5, 32, requires_grad=True)
    experts: Any = block.experts
    experts(hidden, torch.zeros(5, 2, dtype=torch.long), torch.ones(5, 2)).sum().backward()
    assert len(layers) == 16 and all(calls[layer] == 1 for layer in layers)
    assert all(layer.weight.grad is not None for layer in layers)  # nor in the backward pass


def test_each_expert_is_a_pair_of_linear_layers() -> None:
    model = tiny_model("gpt_oss")
    block = find_blocks(model)[0]
    shapes = {name: parameter.shape for name, parameter in block.experts.named_parameters()}
    unfuse(model, find_blocks(model), linear)
    pair = getattr(block.experts, UNFUSED)[0]
    assert pair["gate_up_linear"].weight.shape == shapes["gate_up_proj"][1:][::-1]  # transposed in this family
    assert pair["down_linear"].bias.shape == shapes["down_proj_bias"][1:]
    assert {name.split(".")[0] for name, _ in block.experts.named_parameters()} == {UNFUSED}


def test_experts_that_hold_something_else_are_refused() -> None:
    block = find_blocks(tiny_model("mixtral"))[0]
    assert expert_weights(block) == ("gate_up_proj", "down_proj")
    block.experts.register_parameter("scale", nn.Parameter(torch.ones(8)))
    with raises("model.experts-not-adaptable", "['down_proj', 'gate_up_proj', 'scale']", "finetuning.method"):
        expert_weights(block)
