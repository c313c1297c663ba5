"""True dimensions, without a download: the configurations are those of the published models."""

import torch
from conftest import plan_for, tiny_model
from transformers import AutoConfig

from toolkit.moe import anatomy_of, sizes, slice_model


def test_mixtral_8x7b() -> None:
    found = anatomy_of(AutoConfig.for_model("mixtral", dtype="bfloat16"))  # the defaults are Mixtral-8x7B's
    assert (found.blocks, found.experts, found.experts_per_token, found.groups, found.shared_parameters) == (32, 8, 2, 1, 0)
    assert found.parameters == 46_702_792_704
    assert found.active_parameters == 12_879_925_248
    assert found.expert_parameters == 32 * 8 * 3 * 4096 * 14336
    assert found.bytes_per_parameter == 2
    assert list(found.pruned) == [6, 4, 2, 1]
    assert found.pruned[4].parameters == 46_702_792_704 - found.expert_parameters // 2 - 32 * 4 * 4096
    assert found.pruned[4].active_parameters == found.active_parameters - 32 * 4 * 4096
    assert found.pruned[1].active_parameters == found.pruned[1].parameters  # one expert, one per token


def test_deepseek_v3_without_allocating_671_billion_parameters() -> None:
    found = anatomy_of(AutoConfig.for_model("deepseek_v3", dtype="bfloat16"))
    assert (found.blocks, found.experts, found.experts_per_token) == (58, 256, 8)
    assert (found.groups, found.groups_per_token) == (8, 4)
    assert round(found.parameters / 1e9) == 671 and round(found.active_parameters / 1e9) in (37, 38)
    assert found.shared_parameters == 58 * 3 * 7168 * 2048
    assert list(found.pruned) == [192, 128, 64, 32]


def test_what_cannot_be_routed_is_not_offered() -> None:
    config = AutoConfig.for_model("deepseek_v3", n_routed_experts=32, topk_group=2, num_hidden_layers=4)
    assert list(anatomy_of(config).pruned) == []  # 8 experts from two groups: four in each of eight are all there are
    assert anatomy_of(config).dtype == torch.float32  # says nothing, and transformers saves what it has


def test_sizes_are_those_of_a_model_that_is_pruned() -> None:
    model = tiny_model("qwen2_moe")
    expected = anatomy_of(model.config).pruned[4]
    assert sizes(slice_model(model, plan_for(model, [0, 2, 3, 7]))) == expected
