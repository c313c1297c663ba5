"""Channels: found by shapes and gradients, and computed as the family's own experts compute them."""

import pytest
import torch
from conftest import raises, tiny_model
from torch import nn

from toolkit.moe import channel_groups, expert_channels, expert_output, expert_width, find_blocks
from toolkit.moe.channels import ChannelAxis


def test_rows_that_a_gate_combines_are_one_channel(family: str) -> None:
    """One at a time: what a row of the fused projection changes is its channel, and no other."""
    model = tiny_model(family)
    experts, group = find_blocks(model)[0].experts, channel_groups(model, 8)[0]
    name = next(name for name in group.tensors if name.endswith("gate_up_proj"))
    axis, inputs = group.tensors[name], torch.randn(5, 32)
    before = expert_channels(experts, inputs, 3)
    parameter = model.get_parameter(name)
    for row in (0, 1, 7, 15, 16, 31):
        whole = parameter.data.clone()
        parameter.data.select(axis.axis, row).mul_(1.5)
        changed = (expert_channels(experts, inputs, 3) != before).any(0).nonzero().flatten().tolist()
        assert changed == [axis.channel_of_row[row]]
        parameter.data = whole


@torch.no_grad()
def test_channels_and_the_down_projection_are_the_experts_output(family: str) -> None:
    experts, inputs = find_blocks(tiny_model(family))[0].experts, torch.randn(5, 32)
    for expert in (0, 5):
        ours = expert_output(experts, expert_channels(experts, inputs, expert), expert)
        theirs = experts(inputs, torch.full((5, 1), expert), torch.ones(5, 1))
        assert (ours - theirs).abs().max() <= 1e-5


def test_experts_as_wide_as_their_hidden_state_are_cut_along_the_right_axes() -> None:
    model = tiny_model("gpt_oss", intermediate_size=32)
    group = channel_groups(model, 12)[0]
    assert {name.rpartition(".")[2]: axis.axis for name, axis in group.tensors.items()} == {
        "gate_up_proj": 2, "gate_up_proj_bias": 1, "down_proj": 1,
    }  # fmt: skip
    assert group.down.endswith("down_proj") and (group.width, group.new_width, group.experts) == (32, 12, 8)


def test_mlps_on_the_same_key_narrow_in_proportion() -> None:
    """DeepSeek's shared experts are n_shared_experts times as wide; its first dense layer has a key of its own."""
    groups = {group.name: group for group in channel_groups(tiny_model("deepseek_v2", n_shared_experts=2), 4)}
    assert [(g.width, g.new_width) for name, g in groups.items() if name.endswith("shared_experts")] == [(32, 8), (32, 8)]
    assert not any(name.startswith("model.layers.0.") for name in groups)


def test_a_key_of_their_own_leaves_shared_experts_alone() -> None:
    assert {g.name for g in channel_groups(tiny_model("qwen2_moe"), 4)} == {"model.layers.0.mlp", "model.layers.1.mlp"}


def test_rows_of_channels() -> None:
    axis = ChannelAxis(1, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert axis.rows(torch.tensor([0, 2])).tolist() == [0, 1, 4, 5]
    assert axis.rows(torch.tensor([[0, 2], [1, 2]])).tolist() == [[0, 1, 4, 5], [2, 3, 4, 5]]


@pytest.mark.parametrize("width", [0, 17])
def test_a_width_that_experts_cannot_have(width: int) -> None:
    with raises("width.out-of-range", "1…16"):
        channel_groups(tiny_model("mixtral"), width)


def test_a_gate_that_mixes_channels_is_refused() -> None:
    model = tiny_model("mixtral")
    for block in find_blocks(model):
        block.experts._apply_gate = lambda projected: projected.softmax(-1)[..., :16]
    with raises("width.unsupported-family", "MixtralExperts"):
        channel_groups(model, 8)


def test_a_width_that_no_key_decides_is_refused() -> None:
    model = tiny_model("mixtral")
    model.config.intermediate_size = 99
    with raises("width.unsupported-family", "intermediate_size"):
        channel_groups(model, 8)


def test_what_else_narrows_and_is_no_mlp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mixtral import modeling_mixtral

    built = modeling_mixtral.MixtralDecoderLayer.__init__

    def with_scale(self: nn.Module, config: object, layer_idx: int) -> None:
        built(self, config, layer_idx)
        self.scale = nn.Parameter(torch.ones(config.intermediate_size))  # type: ignore[attr-defined]

    monkeypatch.setattr(modeling_mixtral.MixtralDecoderLayer, "__init__", with_scale)
    with raises("width.unsupported-family", "model.layers.0.scale"):
        channel_groups(tiny_model("mixtral"), 8)


def test_blocks_of_several_widths_are_named() -> None:
    model = tiny_model("mixtral")
    experts = find_blocks(model)[1].experts
    experts.down_proj = nn.Parameter(experts.down_proj.data[..., :8])
    with raises("width.several-widths", "8 and 16", "model.layers.1.mlp"):
        expert_width(model)
