import pytest
import torch
from conftest import tiny_model

from toolkit.moe import find_blocks, recording_layers


@torch.no_grad()
def test_the_layers_one_by_one_are_the_model(family: str) -> None:
    model = tiny_model(family)
    batches = torch.randint(3, 64, (4, 24)).split(2)
    with recording_layers(model, find_blocks(model)) as calls:
        expected = [model.base_model(ids, use_cache=False).last_hidden_state for ids in batches]
    for batch, end in enumerate(expected):
        hidden = calls.inputs_BSH[batch]
        for number in range(len(calls.layers)):
            hidden = calls.run(number, batch, hidden)
        assert torch.equal(model.base_model.norm(hidden), end)


def test_a_block_knows_its_layer_and_nothing_stays_on_the_model(family: str) -> None:
    model = tiny_model(family)
    blocks = find_blocks(model)
    with recording_layers(model, blocks) as calls:
        pass
    assert [calls.number_of(block) for block in blocks] == [int(block.name.split(".")[2]) for block in blocks]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_error_leaves_no_hooks() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(RuntimeError, match="stop"), recording_layers(model, find_blocks(model)):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in model.modules())
