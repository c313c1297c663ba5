import copy
from pathlib import Path

import pytest
import torch
from conftest import logits_of, raises, tiny_model
from families import EXCEPTIONS, families, tiny_family
from peft import PeftModel

from toolkit.moe import MoEBlock, decoder_linears, find_blocks
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recovery.adapters import adapt, adapter_weights, with_adapter
from toolkit.recovery.methods import METHODS, check_reach, count_trainable
from toolkit.recovery.quantize import quantize, round_to_nf4

CPU = torch.device("cpu")
LORA = LoraRecipe(rank=3, alpha=6, router=True)


def adapted(family: str, method: str, lora: LoraRecipe = LORA) -> tuple[PeftModel, list[MoEBlock]]:
    """The tiny model, as if trained: adapters start as nothing, here they are something."""
    model = tiny_model(family)
    blocks = find_blocks(model)
    linears = list(decoder_linears(model, blocks))
    if method == "qlora":
        quantize(model, blocks, CPU)
    model = adapt(model, blocks, linears, lora)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "modules_to_save" in name):
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05
    return model, blocks


def stock(family: str, method: str) -> torch.nn.Module:
    model = tiny_model(family)
    if method == "qlora":
        round_to_nf4(model, find_blocks(model), CPU)
    return model


@pytest.mark.parametrize("experts", ["each", "shared"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_reach_the_experts_of_every_block_and_merge_exactly(family: str, method: str, experts: str) -> None:
    lora = LoraRecipe(rank=3, alpha=6, router=True, experts=experts)
    model, blocks = adapted(family, method, lora)
    check_reach(model, blocks, METHODS[method], lora)
    ids = torch.randint(3, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for block in blocks:
        inside = [p for n, p in model.named_parameters() if f"{block.experts_name}." in n and p.requires_grad]
        assert sum(p.grad.abs().sum() for p in inside) > 0

    expected = logits_of(model.eval())
    before = stock(family, method)
    names = set(before.state_dict())
    assert (logits_of(before) - expected).abs().max() > 1e-2
    merged = with_adapter(before, lora, adapter_weights(model)).merge_and_unload()
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(families()) - set(EXCEPTIONS)))
def test_adapters_reach_the_experts_of_every_family(family: str) -> None:
    model = tiny_family(family)
    blocks = find_blocks(model)
    linears = decoder_linears(model, blocks)
    adapted = adapt(model, blocks, linears, LoraRecipe(rank=2))
    check_reach(adapted, blocks, METHODS["lora"], LoraRecipe())
    assert count_trainable(adapted, blocks)["other layers"] > 0


@pytest.mark.parametrize("experts", ["each", "shared"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_stock_peft_puts_the_saved_adapter_on_the_stock_model(method: str, experts: str, tmp_path: Path) -> None:
    lora = LoraRecipe(rank=3, experts=experts)
    model, _ = adapted("qwen2_moe", method, lora)
    expected = logits_of(model)
    with_adapter(stock("qwen2_moe", method), lora, adapter_weights(model)).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(stock("qwen2_moe", method), tmp_path)
    torch.testing.assert_close(logits_of(again), expected, rtol=1e-4, atol=1e-4)


def test_the_base_stays_as_it_was() -> None:
    before = tiny_model("mixtral").state_dict()
    model, _ = adapted("mixtral", "lora")
    frozen = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in model.named_parameters()}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in before.items() if name in frozen)
    assert all(not p.requires_grad for n, p in model.named_parameters() if "lora" not in n and "modules_to_save" not in n)


def test_each_expert_has_an_adapter_of_its_own_rank() -> None:
    expected = 2 * 8 * 3 * ((32 + 32) + (16 + 32))  # blocks, experts, rank, [2I, H] and [H, I]: A and B of each
    for method in ("lora", "qlora"):
        model, blocks = adapted("mixtral", method, LoraRecipe(rank=3))
        assert count_trainable(model, blocks)["experts"] == expected
        assert count_trainable(model, blocks)["routers"] == 0


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_shared_adapter_is_as_large_as_one_experts_and_changes_all_alike(method: str) -> None:
    lora = LoraRecipe(rank=3, experts="shared")
    model, blocks = adapted("mixtral", method, lora)
    assert count_trainable(model, blocks)["experts"] == 2 * 3 * ((32 + 32) + (16 + 32))
    before = stock("mixtral", method)
    merged = with_adapter(copy.deepcopy(before), lora, adapter_weights(model)).merge_and_unload()
    for block, base in zip(find_blocks(merged), find_blocks(before), strict=True):
        for name in ("gate_up_proj", "down_proj"):
            change = getattr(block.experts, name) - getattr(base.experts, name)
            assert change.abs().max() > 1e-3
            torch.testing.assert_close(change, change[:1].expand_as(change), rtol=0, atol=1e-6)


def test_where_adapters_begin_is_the_same_each_or_shared() -> None:
    """A is drawn at random as for every expert, and B is zero: the model is the pruned one."""
    model = tiny_model("mixtral")
    blocks = find_blocks(model)
    shared = adapt(model, blocks, decoder_linears(model, blocks), LoraRecipe(experts="shared"))
    torch.testing.assert_close(logits_of(shared), logits_of(tiny_model("mixtral")), rtol=0, atol=1e-6)


def test_an_expert_that_is_not_reached_is_an_error() -> None:
    model, blocks = adapted("mixtral", "qlora")
    next(p for n, p in model.named_parameters() if "unfused.7.down_linear.lora_B" in n).requires_grad_(False)
    with raises("recovery.wrong-reach", "method qlora", "32 tensors", "model.layers.0.mlp", [31, 1]):
        check_reach(model, blocks, METHODS["qlora"], LORA)


def test_what_was_trained_elsewhere_does_not_fit() -> None:
    model, _ = adapted("mixtral", "lora")
    weights = {name.replace("layers.0", "layers.7"): tensor for name, tensor in adapter_weights(model).items()}
    with raises("recovery.adapter-mismatch", "layers.7"):
        with_adapter(copy.deepcopy(tiny_model("mixtral")), LORA, weights)
