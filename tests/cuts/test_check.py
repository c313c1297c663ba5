from dataclasses import replace

import pytest
from conftest import plan_for, tiny_model
from transformers import AutoConfig

from toolkit.cuts.apply import check_plan
from toolkit.moe import check_prunable, find_blocks, meta_model
from toolkit.moe.blocks import MoEBlock
from toolkit.runtime.errors import PollardError


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
        ({}, 60, 8, r"60 experts cannot be kept: .* routes within 8 groups of experts of equal size\. Give a multiple of 8\."),
        ({}, 8, 8, r"ranked by the two best of each\. Keep at least 16\."),
        ({"groups_per_token": 2}, 16, 8, r"takes 8 experts per token from the best 2, which hold only 4\. Keep at least 32, or"),
        ({"groups": 1, "groups_per_token": 1}, 1, 1, r"within 1 group of experts, ranked by the two best of each"),
        ({}, 64, 9, r"activates 8 experts per token: pruning\.experts_per_token can lower that, not raise it to 9\."),
    ],
)  # fmt: skip
def test_a_budget_that_groups_cannot_serve_is_explained(numbers: dict[str, int], keep: int, active: int, told: str) -> None:
    with pytest.raises(PollardError, match=told):
        check_prunable(grouped(**numbers), keep, active)


def test_a_plan_with_uneven_groups_is_refused() -> None:
    model = tiny_model("deepseek_v2", topk_method="group_limited_greedy", n_group=2, topk_group=1)
    with pytest.raises(PollardError, match=r"keeps \[3, 1\] experts in the 2 groups of model\.layers\.1\.mlp.*keep 2 in each"):
        check_plan(model, plan_for(model, [0, 1, 3, 5]))
    check_plan(model, plan_for(model, [0, 3, 5, 6]))


def test_groups_that_a_router_does_not_use_bind_nobody() -> None:
    model = tiny_model("deepseek_v2", topk_method="greedy", n_group=2, topk_group=1)
    check_plan(model, plan_for(model, [0, 1, 2]))
