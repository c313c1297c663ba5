"""Laws of what a method trains: the estimate's numbers are those that the method sets up."""

import pytest
import torch
from conftest import tiny_model
from small_run import small_recipe

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.finetuning import FineTuning, estimate_finetuning
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import model_size
from toolkit.estimate.training_memory import ZeroSettings, training_memory
from toolkit.moe import decoder_linears, find_blocks, meta_model
from toolkit.pipeline.recipe_on_machine import trainer_settings, training_model
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recovery.adapters import adapt
from toolkit.recovery.method import Loaded
from toolkit.recovery.methods import METHODS, count_trainable
from toolkit.recovery.quantize import quantize

FAMILIES = ["mixtral", "deepseek_v2", "gpt_oss"]  # plain; with shared experts and a dense layer; with biases, transposed
CPU = torch.device("cpu")


def recipe_of(method: str, **lora: object):
    finetuning = {"method": method} | ({"lora": lora} if lora else {})
    pruning = {"grow": {"onto": "runs/a/recovered", "keep": 6}} if method == "new" else {"keep": 4}
    return small_recipe(finetuning=finetuning, pruning=pruning)


@pytest.mark.parametrize("experts", ["each", "shared"])
@pytest.mark.parametrize("method", ["lora", "qlora", "router", "experts", "spp", "new"])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_numbers_train_as_the_method_sets_up(family: str, method: str, experts: str) -> None:
    lora = {"rank": 3, "router": True, "experts": experts} if "lora" in method else {}
    model = tiny_model(family)
    expected = training_model(model_size(meta_model(model.config), torch.float32), recipe_of(method, **lora).finetuning)
    assert expected.parameters == sum(p.numel() for p in model.parameters())
    blocks = find_blocks(model)
    if "lora" in method:
        model = adapt(model, blocks, [*decoder_linears(model, blocks)], LoraRecipe(**lora))
    else:
        METHODS[method].set_up(Loaded(model, blocks, [], {block.name: [6, 7] for block in blocks}), LoraRecipe())
    assert sum(count_trainable(model, blocks).values()) == expected.trained


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_model_is_as_large_as_estimated(family: str) -> None:
    model = tiny_model(family, hidden_size=128, intermediate_size=64, moe_intermediate_size=64)
    expected = training_model(model_size(meta_model(model.config), torch.float32), recipe_of("qlora").finetuning).frozen_bytes
    whole = sum(p.nbytes for p in model.parameters())
    quantize(model, find_blocks(model), CPU)
    found = sum(p.nbytes for p in model.parameters())
    assert expected < 0.6 * whole and abs(found - expected) < 0.05 * expected


def test_adapters_need_no_optimizer_for_what_is_frozen() -> None:
    numbers = model_size(meta_model(tiny_model("mixtral").config), torch.bfloat16)
    zero = ZeroSettings(stage=2)
    full, lora, qlora = (
        training_memory(training_model(numbers, recipe.finetuning), zero, 1, 2, "adamw_torch")
        for recipe in (recipe_of("full"), recipe_of("lora", rank=1), recipe_of("qlora", rank=1))
    )
    assert lora.gpu["optimizer"] < full.gpu["optimizer"] / 2
    assert qlora.gpu["weights"] < lora.gpu["weights"] and qlora.gpu["optimizer"] == lora.gpu["optimizer"]


def test_a_router_gradient_over_all_experts_costs_one_forward_pass_of_those_not_chosen() -> None:
    numbers = model_size(meta_model(tiny_model("mixtral", vocab_size=768).config), torch.float32)
    settings = trainer_settings(recipe_of("full"), on_gpu=False)
    machine = Machine(gpus=0, nodes=1, gpu_memory=0, cpu_memory=2**40, gpu=None)
    usual, every = (
        estimate_finetuning(
            "recover",
            FineTuning(
                numbers, training_model(numbers, recipe_of("full").finetuning), settings, "full", 2, all_experts=all_experts
            ),
            machine,
            DataSize(examples=8, mean=10, longest=20, measured=True),
        )
        for all_experts in (False, True)
    )
    tokens = settings.steps(8, machine.ranks) * settings.examples_per_step(machine.ranks) * 10
    assert every.flops - usual.flops == 2 * (numbers.experts - numbers.active_experts) * tokens
    assert not usual.notes and "experts compute what did not choose them, too: 2.0 times" in every.notes[0]
