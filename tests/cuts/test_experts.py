from dataclasses import replace

import pytest
import torch
from conftest import logits_of, plan_for, raises, tiny_model
from transformers import AutoConfig

from toolkit.cuts.apply import apply_plan, check_plan, masked
from toolkit.moe import check_prunable, find_blocks, meta_model
from toolkit.moe.blocks import MoEBlock

KEPT = [1, 2, 6]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_slicing_is_masking(family: str, implementation: str) -> None:
    model = tiny_model(family)
    model.set_experts_implementation(implementation)
    plan = plan_for(model, KEPT)
    with masked(model, plan):
        expected = logits_of(model)
    sliced = apply_plan(model, plan)
    assert (logits_of(sliced) - expected).abs().max() <= 1e-5
    assert all(block.expert_count == len(KEPT) for block in find_blocks(sliced))


def test_a_sliced_model_trains_with_its_balancing_loss(family: str) -> None:
    model = tiny_model(family)
    apply_plan(model, plan_for(model, KEPT)).train()
    ids = torch.randint(3, 64, (2, 16))
    try:
        out = model(ids, labels=ids, output_router_logits=True)
    except TypeError:  # families that never expose their router's logits
        out = model(ids, labels=ids)
    out.loss.backward()
    assert all(block.experts.gate_up_proj.grad.isfinite().all() for block in find_blocks(model))


def test_shared_experts_are_never_sliced() -> None:
    for family in ("qwen2_moe", "deepseek_v2"):
        model = tiny_model(family)
        shared = {name: p.shape for name, p in model.named_parameters() if "shared" in name}
        assert shared
        apply_plan(model, plan_for(model, KEPT))
        assert {name: p.shape for name, p in model.named_parameters() if "shared" in name} == shared


def test_a_plan_for_another_model_is_refused_by_naming_the_blocks() -> None:
    plan = plan_for(tiny_model("mixtral"), KEPT)
    with raises("plan.other-model", "does not name", "layers.2.mlp"):
        apply_plan(tiny_model("mixtral", num_hidden_layers=3), plan)
    with raises("plan.other-expert-count", "8 experts in model.layers.0.mlp", "has 6"):
        apply_plan(tiny_model("mixtral", num_local_experts=6), plan)


def grouped(**numbers: int) -> list[MoEBlock]:
    """DeepSeek-V3's blocks: 256 experts in 8 groups; a token takes 8 experts from 4 of the groups."""
    return [replace(block, **numbers) for block in find_blocks(meta_model(AutoConfig.for_model("deepseek_v3")))]


def test_a_budget_that_groups_can_serve_is_accepted() -> None:
    check_prunable(grouped(), keep=64, experts_per_token=8)
    check_prunable(grouped(), keep=16, experts_per_token=8)  # two in each of the four groups a token may use
    check_prunable(grouped(groups_per_token=2), keep=16, experts_per_token=4)


@pytest.mark.parametrize(
    ("numbers", "keep", "active", "told"),
    [
        ({}, 60, 8, ("plan.uneven-groups", "60 experts", "8 groups", "a multiple of 8")),
        ({}, 8, 8, ("plan.groups-too-small", "at least 16")),
        ({"groups_per_token": 2}, 16, 8, ("plan.groups-too-small", "only 4", "at least 32")),
        ({"groups": 1, "groups_per_token": 1}, 1, 1, ("plan.groups-too-small", "within 1 group of experts")),
        ({}, 64, 9, ("plan.raises-top-k", "activates 8", "pruning.experts_per_token", "to 9")),
    ],
)  # fmt: skip
def test_a_budget_that_groups_cannot_serve_is_explained(
    numbers: dict[str, int], keep: int, active: int, told: tuple[str, ...]
) -> None:
    with raises(*told):
        check_prunable(grouped(**numbers), keep, active)


def test_a_plan_with_uneven_groups_is_refused() -> None:
    model = tiny_model("deepseek_v2", topk_method="group_limited_greedy", n_group=2, topk_group=1)
    with raises("plan.uneven-groups", "[3, 1]", "2 groups of model.layers.1.mlp", "keep 2 in each"):
        check_plan(model, plan_for(model, [0, 1, 3, 5]))
    check_plan(model, plan_for(model, [0, 3, 5, 6]))


def test_groups_that_a_router_does_not_use_bind_nobody() -> None:
    model = tiny_model("deepseek_v2", topk_method="greedy", n_group=2, topk_group=1)
    check_plan(model, plan_for(model, [0, 1, 2]))
