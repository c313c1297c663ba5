import torch
from conftest import raises, tiny_model
from families import tiny_family
from transformers import AutoModelForCausalLM, LlamaConfig

from toolkit.moe import decoder_linears, find_blocks


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
    with raises("model.no-moe", "llama"):
        find_blocks(model)


def leaves(names: dict) -> set[str]:
    return {name.partition("layers.")[2].partition(".")[2] for name in names}


def test_attention_and_dense_layers_are_named_and_experts_are_not() -> None:
    model = tiny_model("deepseek_v2")
    found = leaves(decoder_linears(model, find_blocks(model)))
    assert {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"} <= found  # the first layer is dense
    assert not any("experts" in name or "lm_head" in name or name.endswith("mlp.gate") for name in found)


def test_shared_experts_come_on_request_and_routers_never() -> None:
    model = tiny_model("qwen2_moe")
    blocks = find_blocks(model)
    beside, within = leaves(decoder_linears(model, blocks)), leaves(decoder_linears(model, blocks, shared=True))
    shared = {f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")} | {"mlp.shared_expert_gate"}
    assert within - beside == shared


def test_a_block_that_is_the_decoder_layer_itself_leaves_its_attention_in() -> None:
    model = tiny_family("gemma4")
    assert {"self_attn.q_proj", "mlp.down_proj"} <= leaves(decoder_linears(model, find_blocks(model)))


def test_towers_for_images_are_no_decoder_layers() -> None:
    model = tiny_family("qwen3_vl_moe")
    assert all(".language_model.layers." in name for name in decoder_linears(model, find_blocks(model)))


# Their fused kernels read `weight` past whatever stands in the layer's place.
def test_mambas_layers_are_left_out() -> None:
    model = tiny_family("jamba")
    assert {name.partition(".")[0] for name in leaves(decoder_linears(model, find_blocks(model)))} == {
        "self_attn",
        "feed_forward",
    }
