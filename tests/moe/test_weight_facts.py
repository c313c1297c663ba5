"""Law: a fact of the weights is its definition, over all numbers of an expert, however its family lays them out."""

import pytest
import torch
from conftest import tiny_model

from toolkit.moe import find_blocks, mean_over_rms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_is_that_of_all_weights_of_an_expert_without_its_biases(family: str, dtype: torch.dtype) -> None:
    for block in find_blocks(tiny_model(family, dtype)):
        found = mean_over_rms(block.experts)
        fused = [block.experts.get_parameter(name) for name in ("gate_up_proj", "down_proj")]
        for expert in range(block.expert_count):
            numbers = torch.cat([parameter[expert].detach().flatten() for parameter in fused]).double()
            assert found[expert].item() == pytest.approx(float(numbers.abs().mean() / numbers.square().mean().sqrt()), rel=1e-6)


def test_few_large_weights_make_it_small_and_equal_ones_make_it_one() -> None:
    block = find_blocks(tiny_model("mixtral"))[0]
    with torch.no_grad():
        for parameter in block.experts.parameters():
            parameter[0] = 0.5
            parameter[1] = 0.0
            parameter[2] *= 1e-3
            parameter[2, 0, 0] = 9.0
    found = mean_over_rms(block.experts)
    assert found[0].item() == pytest.approx(1.0) and found[1] == 1.0 and found[2] < 0.1 < found[3:].min()
