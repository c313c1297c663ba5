"""An expert's matrices, whatever their layout, multiply as the family's own experts do."""

import torch
from conftest import tiny_model

from toolkit.moe import expert_channels, find_blocks
from toolkit.moe.expert_matrices import expert_matrices


@torch.no_grad()
def test_matrices_have_an_output_per_row_and_an_input_per_column(family: str) -> None:
    experts = find_blocks(tiny_model(family))[0].experts
    up, down = expert_matrices(experts)
    assert (up.name, up.shape, down.name, down.shape) == ("gate_up_proj", (32, 32), "down_proj", (32, 16))
    hidden = torch.randn(5, 32)
    for matrix in (up, down):
        bias = getattr(experts, f"{matrix.name}_bias", None)
        if bias is not None:
            bias.zero_()
    channels = expert_channels(experts, hidden, 3)
    theirs = experts(hidden, torch.full((5, 1), 3), torch.ones(5, 1))
    assert (channels @ down.of(3).T - theirs).abs().max() <= 1e-5
    assert up.of(3).shape == up.shape and down.of(3).shape == down.shape


def test_what_is_written_into_a_view_is_the_models(family: str) -> None:
    experts = find_blocks(tiny_model(family))[0].experts
    for matrix in expert_matrices(experts):
        before = matrix.parameter.data.clone()
        matrix.of(2).copy_(torch.zeros(matrix.shape))
        changed = (matrix.parameter.data != before).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [2] and not matrix.parameter.data[2].any()
