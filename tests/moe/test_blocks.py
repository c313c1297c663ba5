import pytest
import torch
from conftest import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig

from toolkit.moe import find_blocks
from toolkit.runtime.errors import PollardError


def test_blocks_are_named_as_modules_and_know_their_counts(family: str) -> None:
    model = tiny_model(family)
    modules = dict(model.named_modules())
    blocks = find_blocks(model)
    assert len(blocks) == 2  # DeepSeek's first layer, of three, is dense
    for block in blocks:
        assert modules[block.name] is block.module
        assert (block.expert_count, block.experts_per_token) == (8, 2)
        assert len(block.router.weight) == 8


def test_a_dense_model_is_refused_by_its_family_name() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(PollardError, match=r"llama has no MoE block.*a dense model has no experts"):
        find_blocks(model)
