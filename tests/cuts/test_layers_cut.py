"""The cut of layers: laws, names, what is refused. tests/cuts/test_layer_families.py takes every family through it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import logits_of, plan_for, raises, tiny_model
from families import tiny_family
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolkit.calibration import calibrate
from toolkit.cuts import Cut, ExpertsCut, LayersCut, Plan, apply_plan, check_plan, masked, prune_checkpoint
from toolkit.cuts.layers import UnknownLayoutError
from toolkit.moe import StreamedModel, find_blocks, load_model, meta_model

ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(2))
batches = [{"input_ids": ids, "attention_mask": (torch.arange(12) >= torch.tensor([[3], [0]])).long()}]


def four_layers(family: str = "mixtral", **changes: object) -> PreTrainedModel:
    return tiny_model(family, num_hidden_layers=4, **changes)


def plan(*cuts: Cut) -> Plan:
    return Plan(model="tiny", experts_per_token=2, cuts=list(cuts))


def layers(*kept: int, layers: int = 4) -> LayersCut:
    return LayersCut(criterion="by hand", layers=layers, kept=list(kept))


def experts(model: PreTrainedModel, *numbers: int, keep: tuple[int, ...] = (1, 2, 6)) -> ExpertsCut:
    """In the blocks of these layers."""
    blocks = {f"model.layers.{n}.mlp": plan_for(model, list(keep)).blocks[f"model.layers.{n}.mlp"] for n in numbers}
    return ExpertsCut.of(blocks, criterion="by hand", keep=len(keep))


def bytes_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


# The oracle, independent of the cut: the layers that go give their input back.
def test_masking_is_leaving_the_layers_out() -> None:
    model = four_layers()
    with masked(model, plan(layers(0, 2, 3))):
        found = logits_of(model)
    model.model.layers[1].forward = lambda hidden, *args, **kwargs: hidden
    assert torch.equal(found, logits_of(model))


def test_inside_the_mask_names_are_the_originals_and_positions_count() -> None:
    model = four_layers()
    parts, everything = list(model.model.layers), dict(model.named_parameters())
    with masked(model, plan(layers(0, 2, 3))):
        found = model.model.layers
        assert [block.name for block in find_blocks(model)] == [f"model.layers.{number}.mlp" for number in (0, 2, 3)]
        assert all(parameter is everything[name] for name, parameter in model.named_parameters())
        assert len(found) == 3 and list(found) == [found[0], found[1], found[-1]] == [parts[0], parts[2], parts[3]]
        assert list(found[1:]) == parts[2:] and list(found[:3]) == list(found) and isinstance(found, nn.ModuleList)
        assert [layer.self_attn.layer_idx for layer in found] == [0, 1, 2]
        assert model.config.num_hidden_layers == model.model.layers[0].self_attn.config.num_hidden_layers == 3
    assert list(model.model.layers) == parts and dict(model.named_parameters()).keys() == everything.keys()
    assert [layer.self_attn.layer_idx for layer in parts] == [0, 1, 2, 3] and model.config.num_hidden_layers == 4


def test_a_model_is_itself_again_also_after_an_error() -> None:
    model = tiny_family("gemma4", hidden_size_per_layer_input=0)  # with a configuration of its own per layer
    before = {id(module.config): dict(vars(module.config)) for module in model.modules() if hasattr(module, "config")}
    expected, names = logits_of(model), list(model.state_dict())
    with pytest.raises(KeyError, match="inside"), masked(model, plan(LayersCut.of(model, [2, 3], "by hand"))):
        assert [layer.layer_idx for layer in model.model.layers] == [0, 1]
        raise KeyError("inside")
    assert torch.equal(logits_of(model), expected) and list(model.state_dict()) == names
    assert all(vars(m.config) == before[id(m.config)] for m in model.modules() if hasattr(m, "config"))


def test_cuts_commute(tmp_path: Path) -> None:
    model = four_layers("qwen2_moe")
    model.save_pretrained(tmp_path / "original")
    cuts = [layers(0, 2, 3), experts(model, 0, 2, 3)]
    found = []
    for order in (cuts, cuts[::-1]):
        with masked(model, plan(*order)):
            found.append(logits_of(model))
        prune_checkpoint(tmp_path / "original", plan(*order), tmp_path / "pruned", overwrite=True)
        found.append(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")))
    step = apply_plan(tiny_model("qwen2_moe", num_hidden_layers=4), plan(cuts[0]))  # one after the other
    apply_plan(step, plan(experts(model, 0, 1, 2)))
    assert all((other - found[0]).abs().max() <= 1e-5 for other in [*found, logits_of(step)])


def test_two_drops_compose_to_one(tmp_path: Path) -> None:
    model = four_layers()
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", plan(layers(0, 2, 3)), tmp_path / "first")
    prune_checkpoint(tmp_path / "first", plan(layers(1, 2, layers=3)), tmp_path / "second")
    prune_checkpoint(tmp_path / "original", plan(layers(2, 3)), tmp_path / "at once")
    twice, once = bytes_of(tmp_path / "second"), bytes_of(tmp_path / "at once")
    assert twice.keys() == once.keys() and all(torch.equal(twice[name], once[name]) for name in once)
    assert (tmp_path / "second" / "config.json").read_text() == (tmp_path / "at once" / "config.json").read_text()


def test_keeping_all_layers_changes_no_byte(tmp_path: Path) -> None:
    model = four_layers("gpt_oss", layer_types=["sliding_attention", "full_attention"] * 2)
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", plan(layers(0, 1, 2, 3)), tmp_path / "pruned")
    kept, original = bytes_of(tmp_path / "pruned"), bytes_of(tmp_path / "original")
    assert kept.keys() == original.keys() and all(torch.equal(kept[name], original[name]) for name in original)
    written, before = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("pruned", "original"))
    assert {key: written[key] for key in before} == before
    with masked(model, plan(layers(0, 1, 2, 3))):
        assert type(model.model.layers) is nn.ModuleList


@pytest.mark.parametrize("mode", [False, "progressive"], ids=["statistics", "progressive search"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_model_streamed_from_files_is_observed_under_the_mask(family: str, mode, tmp_path: Path) -> None:
    model = four_layers(family, **({"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "gpt_oss" else {}))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    choice = plan(layers(0, 2, 3))
    loaded, streamed = load_model(str(tmp_path)), StreamedModel(str(tmp_path))
    with masked(loaded, choice):
        expected = calibrate(loaded, batches, mode, 4)
    with masked(streamed.model, choice):
        found = calibrate(streamed, batches, mode, 4)
    assert list(expected.about.blocks) == [f"model.layers.{number}.mlp" for number in (0, 2, 3)]
    assert found.vectors.keys() == expected.vectors.keys()
    assert all(torch.equal(found.vectors[name], vector) for name, vector in expected.vectors.items())
    assert found.about.reconstruction == expected.about.reconstruction
    whole = calibrate(loaded, batches)
    differing = [name for name, vector in expected.vectors.items() if not torch.equal(vector, whole.vectors[name])]
    assert any("layers.2" in name for name in differing) and not any("layers.0" in name for name in differing)


def test_layers_that_predict_further_tokens_are_not_mistaken_for_layers(tmp_path: Path) -> None:
    model = four_layers("deepseek_v3", **MTP)
    model.save_pretrained(tmp_path / "original")
    file = tmp_path / "original" / "model.safetensors"
    tensors = load_file(file)
    tensors |= {name.replace("layers.3.", "layers.4."): tensor.clone() for name, tensor in tensors.items() if "layers.3." in name}
    save_file(tensors, file, metadata={"format": "pt"})
    prune_checkpoint(tmp_path / "original", plan(layers(0, 2, 3)), tmp_path / "pruned")
    names = load_file(tmp_path / "pruned" / "model.safetensors").keys()
    assert {name.split(".")[2] for name in names if "layers" in name} == {"0", "1", "2"}
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and config["num_nextn_predict_layers"] == 0
    assert config["first_k_dense_replace"] == 1
    apply_plan(model, plan(layers(0, 2, 3)))
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")), logits_of(model))


MTP = {
    "n_routed_experts": 8, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip


def test_a_quantized_checkpoint_keeps_its_scales_and_says_so_by_the_new_numbers(tmp_path: Path) -> None:
    model = four_layers()
    model.save_pretrained(tmp_path / "original")
    file = tmp_path / "original" / "model.safetensors"
    tensors = load_file(file)
    scaled = [name for name in tensors if "experts" in name]
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn) for name in scaled}
    tensors |= {f"{name}_scale_inv": torch.full((1, 1), float(number)) for number, name in enumerate(scaled)}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    kept = ["lm_head", "model.layers.1.mlp.gate", "model.layers.3.mlp.gate", "layers.2.self_attn"]
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": kept}
    (tmp_path / "original" / "config.json").write_text(json.dumps(config))

    prune_checkpoint(tmp_path / "original", plan(layers(0, 2, 3), experts(model, 0, 2, 3)), tmp_path / "pruned")
    written = load_file(tmp_path / "pruned" / "model.safetensors")
    old, new = (f"model.layers.{n}.block_sparse_moe.experts.{e}.w1.weight_scale_inv" for n, e in ((3, 6), (2, 2)))
    assert torch.equal(written[new], tensors[old])
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head", "model.layers.2.mlp.gate", "layers.1.self_attn"]


@pytest.mark.parametrize(
    ("name", "parameter", "new"),
    [
        ("model.layers.2.block_sparse_moe.experts.7.w1.weight", "model.layers.2.mlp.experts.gate_up_proj", "model.layers.1."),
        ("language_model.layers.3.input_layernorm.weight", "model.layers.3.input_layernorm.weight", "language_model.layers.2."),
        ("model.layers.2", "model.layers.2", "model.layers.1"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("vision.layers.2.fc.weight", "model.vision.layers.2.fc.weight", "vision.layers.2.fc.weight"),
        ("buffer", "", "buffer"),
    ],
)
def test_a_stored_name_gets_its_layers_new_number(name: str, parameter: str, new: str) -> None:
    found = layers(0, 2, 3).rename(name, parameter)
    assert found is not None and found.startswith(new) and found.count(".") == name.count(".")


def test_a_stored_name_of_a_layer_that_goes_is_gone() -> None:
    assert layers(0, 2, 3).rename("model.layers.1.x.weight", "model.layers.1.x.weight") is None
    with pytest.raises(UnknownLayoutError, match="of layer 2"):
        layers(0, 2, 3).rename("attn.queries.1", "model.layers.2.queries.weight")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"kept": []}, "ascending"),
        ({"kept": [2, 0]}, "ascending"),
        ({"kept": [0, 0]}, "duplicates"),
        ({"kept": [0, 4]}, "outside 0…3"),
        ({"kept": [-1, 2]}, "outside 0…3"),
        ({"kept": [0], "scores": [0.5]}, "1 scores for 4 layers"),
        ({"kept": [0], "keep": 1}, "keep"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        LayersCut(criterion="by hand", layers=4, **fields)  # type: ignore[arg-type]


def test_layers_that_a_model_does_not_have_are_named() -> None:
    with raises("plan.layers", "0…1", "[0, 3]"):
        LayersCut.of(tiny_model("mixtral"), [0, 3], "by hand")


def test_a_plan_of_another_model_is_refused() -> None:
    model = four_layers()
    with raises("plan.other-model", "5 layers", "has 4"):
        check_plan(model, plan(layers(0, 2, layers=5)))
    elsewhere = LayersCut(criterion="by hand", layers=4, kept=[0], path="model.language_model.layers")
    with raises("plan.other-model", "model.language_model.layers", "model.layers"):
        check_plan(model, plan(elsewhere))
    with raises("plan.other-model", "does not name", "layers.3.mlp"):
        check_plan(model, plan(layers(0, 2, 3), experts(model, 0, 2)))
    with raises("plan.other-model", "layers go", "layers.1.mlp"):
        check_plan(model, plan(layers(0, 2, 3), experts(model, 0, 1, 2, 3)))


def test_a_model_without_experts_is_not_left() -> None:
    with raises("layers.no-moe-block", "[0]", "model.layers.1.mlp"):
        check_plan(tiny_model("deepseek_v2"), plan(layers(0, layers=3)))


@pytest.mark.parametrize(
    ("family", "kept", "named"),
    [
        ("zaya", [1, 2, 3], "router_states_scale"),  # the first layer's router is of another kind
        ("jamba", [0, 2, 3], "layer 2, as layer 1"),  # every second layer has experts
        ("granitemoehybrid", [0, 2], "no attention layer"),
        ("hy_v4", [0, 2, 3], "uses what layer 1 computes"),
        ("minimax", [0, 1, 2], "num_hidden_layers"),  # decay by the layer's number
        ("gemma4", [0, 1, 2], "full_attention"),  # its last layer is always of one kind
    ],
)
def test_layers_that_stock_transformers_would_read_otherwise_are_refused(family: str, kept: list[int], named: str) -> None:
    model = tiny_family(family)
    before = model.config.to_json_string()
    for attempt in (lambda chosen: check_plan(model, chosen), lambda chosen: masked(model, chosen).__enter__()):
        with raises("layers.cannot-drop", model.config.model_type, named):
            attempt(plan(LayersCut.of(model, kept, "by hand")))
    assert model.config.to_json_string() == before


def test_a_layer_that_others_borrow_keys_from_cannot_go() -> None:
    model = tiny_family("mistral_large4", text_config={"kv_source_layers": [0, 0, 2, 2], "no_rope_layers": [1, 1, 1, 1]})
    with raises("layers.cannot-drop", "layer 3 uses what layer 2 computes"):
        check_plan(model, plan(LayersCut.of(model, [0, 1, 3], "by hand")))
    chosen = plan(LayersCut.of(model, [2, 3], "by hand"))
    with masked(model, chosen):
        expected = logits_of(model)
    assert torch.equal(logits_of(apply_plan(model, chosen)), expected)
    assert model.config.get_text_config().kv_source_layers == [0, 0]


def test_it_is_cut_without_weights_too() -> None:
    model = four_layers("qwen3_moe", mlp_only_layers=[1])
    found = apply_plan(meta_model(copy.deepcopy(model.config)), plan(layers(0, 2, 3)))
    apply_plan(model, plan(layers(0, 2, 3)))
    assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert found.config.mlp_only_layers == model.config.mlp_only_layers == []


def test_a_model_that_is_not_its_configurations_is_refused() -> None:
    model = four_layers()
    apply_plan(meta_model(model.config), plan(layers(0, 2, 3)))  # they share it
    with raises("layers.cannot-drop", "3 layers", "has 4"):
        check_plan(model, plan(layers(0, 2, 3)))
