"""After training, under every ZeRO stage and method: tests/recovery/test_recover.py, test_methods.py."""

from pathlib import Path

import pytest
import torch
from companions import CONFIG, FILES, add_companions, check_companions, read_config, write_config
from conftest import SMALL, logits_of, plan_for, tiny_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3_5MoeForConditionalGeneration

from toolkit.cuts.checkpoint import complete_checkpoint, prune_checkpoint, write_checkpoint
from toolkit.moe import load_model
from toolkit.moe.model_files import companions, copy_companions

KEPT = [0, 3, 5, 6]
COUNTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}


def test_one_list_says_what_comes_along(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    add_companions(tmp_path)
    assert {str(path) for path in companions(tmp_path)} == {*FILES}


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "source")
    add_companions(tmp_path / "source")
    (tmp_path / "target").mkdir()
    left = ["adapter_model.safetensors", "consolidated.safetensors", "model.fp16.safetensors", "model.safetensors", "original/"]
    assert copy_companions(tmp_path / "source", tmp_path / "target") == [*left, "pytorch_model.bin", "skipping.json"]


@pytest.mark.parametrize("way", ["by its files", "in memory"])
def test_pruning_brings_every_companion_and_key_along(tiny_checkpoint, tmp_path: Path, way: str) -> None:
    source = tiny_checkpoint()
    plan = plan_for(AutoModelForCausalLM.from_pretrained(source), KEPT)
    if way == "in memory":
        torch.save(load_file(source / "model.safetensors"), tmp_path / "weights")
        (source / "model.safetensors").unlink()
    add_companions(source)
    if way == "in memory":
        (source / "pytorch_model.bin").write_bytes((tmp_path / "weights").read_bytes())
    prune_checkpoint(source, plan, tmp_path / "pruned")
    check_companions(source, tmp_path / "pruned", **COUNTS)


def test_a_name_that_the_weights_have_in_the_original_alone_is_not_promised(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint()
    (source / "model.safetensors").rename(source / "mine.safetensors")
    write_config(source, read_config(source) | {"transformers_weights": "mine.safetensors"})
    prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), tmp_path / "pruned")
    assert "transformers_weights" not in read_config(tmp_path / "pruned")
    AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")


def trained(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As after a training of all weights, in that type."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    model.config.router_aux_loss_coef = 0.5  # as trainers do
    folder.mkdir()
    write_checkpoint(model, folder)
    complete_checkpoint(source, folder, model.config, model.dtype)
    return folder


def test_a_trained_checkpoint_keeps_all_of_the_configuration_that_still_holds(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint()
    old = read_config(source) | {"torch_dtype": "float32", "router_aux_loss_coef": 0.02, "compression_config": {"x": 1}} | CONFIG
    write_config(source, old)
    written = read_config(trained(source, tmp_path / "trained", torch.bfloat16))
    del old["compression_config"]  # trained weights are plain numbers
    assert written == old | {"dtype": "bfloat16", "torch_dtype": "bfloat16", "num_experts": 8}


def test_generation_settings_that_the_original_lacks_are_not_made_up(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint()
    (source / "generation_config.json").unlink()
    assert not (trained(source, tmp_path / "trained") / "generation_config.json").exists()


# transformers opens some models with several parts as their language model alone.
def test_the_language_model_of_one_with_several_parts(tmp_path: Path) -> None:
    text = SMALL | {"num_experts": 8, "head_dim": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "router_aux_loss_coef": 0.02}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen3_5_moe", text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    whole = Qwen3_5MoeForConditionalGeneration(config)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole.save_pretrained(tmp_path / "original")

    prune_checkpoint(tmp_path / "original", plan_for(load_model(str(tmp_path / "original")), KEPT), tmp_path / "pruned")
    before, after = read_config(tmp_path / "original"), read_config(tmp_path / "pruned")
    assert (
        after["text_config"] == before["text_config"] | {"num_experts": 4} and after["vision_config"] == before["vision_config"]
    )

    model = load_model(str(tmp_path / "pruned"))
    assert type(model).__name__ == "Qwen3_5MoeForCausalLM"
    written = trained(tmp_path / "pruned", tmp_path / "trained")
    assert {key: read_config(written)[key] for key in ("model_type", "num_experts", "router_aux_loss_coef")} == {
        "model_type": "qwen3_5_moe_text", "num_experts": 4, "router_aux_loss_coef": 0.02,
    }  # fmt: skip
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(written)), logits_of(model))
