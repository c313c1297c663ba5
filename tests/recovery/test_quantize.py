import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import logits_of, tiny_model
from transformers import PreTrainedModel

from toolkit.moe import find_blocks
from toolkit.recipe.schema import Recipe
from toolkit.recovery.quantize import expert_bytes, load_to_round, quantize, round_to_nf4

CPU = torch.device("cpu")


def quantized(family: str = "mixtral", **changes: int) -> PreTrainedModel:
    model = tiny_model(family, **changes)
    quantize(model, find_blocks(model), CPU)
    return model


def test_experts_take_a_good_quarter_of_their_bfloat16_size() -> None:
    model = tiny_model("mixtral", hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_local_experts=4)
    blocks = find_blocks(model)
    in_bfloat16 = 2 * sum(parameter.numel() for parameter in blocks[0].experts.parameters())
    quantize(model, blocks, CPU)
    assert 0.25 < expert_bytes(blocks) / in_bfloat16 <= 0.32


def test_experts_and_attention_are_in_four_bits_and_what_steers_is_not() -> None:
    model = quantized()
    inside = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(inside) == 2 * (8 * 2 + 4)  # per layer: two per expert, and q, k, v, o
    whole = {name for name, _ in model.named_parameters() if name.removesuffix(".weight") not in inside}
    assert all("experts" not in name and "proj" not in name for name in whole)
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"} <= whole


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_rounded_stock_model_is_the_quantized_one(family: str) -> None:
    model = tiny_model(family)
    stock = copy.deepcopy(model)
    quantize(model, find_blocks(model), CPU)
    round_to_nf4(stock, find_blocks(stock), CPU)
    torch.testing.assert_close(logits_of(stock), logits_of(model), rtol=1e-4, atol=1e-4)
    assert (logits_of(stock) - logits_of(tiny_model(family))).abs().max() > 1e-2  # four bits do round


# DeepSpeed casts every parameter of another dtype to the one it trains in: packed weights must not be among them.
def test_four_bits_are_stored_in_the_dtype_that_trains(tiny_checkpoint: Callable[..., Path]) -> None:
    recipe = Recipe.model_validate({"name": "t", "model": "m", "task": "gsm8k"})
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        arguments: Any = SimpleNamespace(bf16=bf16, fp16=False)
        model = load_to_round(recipe, arguments, str(tiny_checkpoint("mixtral")))
        quantize(model, find_blocks(model), CPU)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


# bitsandbytes repacks weights in place for inference on some CPUs; no gradient passes through those.
def test_training_goes_on_after_an_evaluation_as_before() -> None:
    model = quantized()
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return model.get_input_embeddings().weight.grad.clone()

    before = gradient()
    with torch.no_grad():
        model.eval()(ids, use_cache=False)
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)
