import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, plan_for, raises, tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.layout import UnknownLayoutError
from toolkit.cuts.writer import plan_prune
from toolkit.moe import StreamedModel, load_config, load_model
from toolkit.moe.tensor_files import SINGLE

KEPT = [0, 3, 5, 6]
E, H, WIDTH = 8, 32, 16


def changed(model: PreTrainedModel, folder: Path, add: dict[str, torch.Tensor], remove: str = "nothing") -> Path:
    """`model` saved, with tensors added and without those whose name ends with `remove`."""
    model.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / SINGLE).items() if not name.endswith(remove)}
    save_file(tensors | add, folder / SINGLE)
    return folder


def pruned(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    prune_checkpoint(folder, plan_for(model, KEPT), folder.with_name("pruned"))
    return load_file(folder.with_name("pruned") / SINGLE)


# FP8 as DeepSeek stores it: a weight and the scale of each of its tiles.
def test_scales_travel_with_their_expert(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    stem = "model.layers.1.block_sparse_moe.experts"
    scales = {f"{stem}.{e}.w1.weight_scale_inv": torch.full((1, 1), float(e)) for e in range(E)}
    weights = {f"{stem}.{e}.w1.weight": torch.full((WIDTH, H), float(e)).to(torch.float8_e4m3fn) for e in range(E)}
    others = {
        "model.layers.1.self_attn.q_proj.weight_scale_inv": torch.ones(1, 1),
        **{f"{stem}.{e}.w2.weight_shape": torch.tensor([H, WIDTH]) for e in range(E)},
    }
    found = pruned(changed(model, tmp_path / "original", scales | weights | others), model)
    for new, old in enumerate(KEPT):
        assert found[f"{stem}.{new}.w1.weight_scale_inv"].item() == old
        assert found[f"{stem}.{new}.w1.weight"].dtype == torch.float8_e4m3fn
        assert (found[f"{stem}.{new}.w1.weight"].float() == old).all()
    assert sum(name.endswith("weight_shape") for name in found) == len(KEPT)
    assert "model.layers.1.self_attn.q_proj.weight_scale_inv" in found and f"{stem}.4.w1.weight_scale_inv" not in found


def test_fused_blocks_are_cut_with_their_scales_and_stay_quantized(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tiny_model("gpt_oss", torch.bfloat16, intermediate_size=32)
    generator = torch.Generator().manual_seed(0)
    blocks = {}
    for layer in range(2):
        for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            blocks[f"{stem}_blocks"] = torch.randint(256, (E, rows, 1, 16), generator=generator, dtype=torch.uint8)
            blocks[f"{stem}_scales"] = torch.randint(120, 128, (E, rows, 1), generator=generator, dtype=torch.uint8)
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    folder = changed(model, tmp_path / "original", blocks, remove="_proj")
    found = pruned(folder, model)
    for name, tensor in blocks.items():
        assert torch.equal(found[name], tensor[KEPT])
    stem = "model.layers.0.mlp"
    assert found[f"{stem}.experts.gate_up_proj_bias"].shape == (4, 64) and found[f"{stem}.router.bias"].shape == (4,)
    assert load_config(str(tmp_path / "pruned")).quantization_config["quant_method"] == "mxfp4"
    assert "it stays quantized (mxfp4) as the original is; fine-tuning dequantizes it" in capsys.readouterr().out
    # What is trained afterwards is what the dequantized original would have been cut to
    expected = apply_plan(load_model(str(folder), dtype="checkpoint"), plan_for(model, KEPT)).state_dict()
    trained = load_model(str(tmp_path / "pruned"), dtype="checkpoint")
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in expected.items())
    # … and is saved under the names of plain numbers, or a reader would leave the experts random
    trained.save_pretrained(tmp_path / "trained")
    saved = load_file(tmp_path / "trained" / "model.safetensors")
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def test_what_cannot_be_run_here_can_be_pruned_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tiny_model("qwen3_moe")
    model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = changed(model, tmp_path / "original", {})
    assert pruned(folder, model)["model.layers.0.mlp.gate.weight"].shape == (4, H)
    assert "it stays quantized (fp8) as the original is; it cannot be fine-tuned here" in capsys.readouterr().out
    with raises("model.quantized", "fp8"):
        load_model(str(tmp_path / "pruned"))


def test_layers_that_predict_further_tokens_are_left_out_by_name_or_number(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tiny_model("deepseek_v3", **FAMILIES["deepseek_v2"])
    further = {
        "model.layers.3.eh_proj.weight": torch.ones(H, 2 * H),
        "model.layers.3.mlp.experts.0.up_proj.weight": torch.ones(16, H),
        "mtp.layers.0.norm.weight": torch.ones(H),
    }
    kept = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # older files have what no model needs
    found = pruned(changed(model, tmp_path / "original", further | kept), model)
    assert not further.keys() & found.keys() and kept.keys() <= found.keys()
    assert "left out: 3 tensors of layers that predict further tokens" in capsys.readouterr().out
    assert load_config(str(tmp_path / "pruned")).num_nextn_predict_layers == 0


STEM = "model.layers.1.block_sparse_moe.experts"
LINEARS = [f"{STEM}.{e}.{name}" for e in range(E) for name in ("w1", "w2", "w3")]


def gptq(linear: str) -> dict[str, torch.Tensor]:
    return {
        f"{linear}.qweight": torch.zeros(4, 16, dtype=torch.int32), f"{linear}.qzeros": torch.zeros(1, 2, dtype=torch.int32),
        f"{linear}.scales": torch.zeros(1, 16).half(), f"{linear}.g_idx": torch.zeros(32, dtype=torch.int32),
    }  # fmt: skip


def fp8(linear: str) -> dict[str, torch.Tensor]:
    weight = torch.zeros(32, 16) if linear.endswith("w2") else torch.zeros(16, 32)
    return {f"{linear}.weight": weight.to(torch.float8_e4m3fn), f"{linear}.weight_scale": torch.ones(1)}


def nf4(linear: str) -> dict[str, torch.Tensor]:
    parts = {"": (256, 1), ".absmax": (8,), ".quant_map": (16,), ".quant_state.bitsandbytes__nf4": (90,)}
    return {f"{linear}.weight{part}": torch.zeros(shape, dtype=torch.uint8) for part, shape in parts.items()}


def mixed(folder: Path, quantized: Callable, plain: list[str], **config: object) -> Path:
    """A checkpoint whose second layer's experts are quantized but for the `plain` ones."""
    model = tiny_model("mixtral")
    model.config.quantization_config = {"quant_method": "some", **config}
    gone = tuple(f"{linear}.weight" for linear in LINEARS if linear not in plain)
    model.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / SINGLE).items() if name not in gone}
    for linear in LINEARS:
        tensors |= {} if linear in plain else quantized(linear)
    save_file(tensors, folder / SINGLE)
    return folder


@pytest.mark.parametrize("quantized", [gptq, fp8, nf4])
@pytest.mark.parametrize("plain", [[f"{STEM}.3.w1"], [f"{STEM}.4.{w}" for w in ("w1", "w2", "w3")], LINEARS[:12], LINEARS])
def test_single_experts_may_be_left_unquantized(quantized: Callable, plain: list[str], tmp_path: Path) -> None:
    folder = mixed(tmp_path / "original", quantized, plain, ignore=plain)
    before, found = load_file(folder / SINGLE), pruned(folder, tiny_model("mixtral"))
    for name, tensor in found.items():
        if STEM in name:  # every tensor of a kept expert is there under its new number, and no other
            new = int(name.removeprefix(STEM + ".").partition(".")[0])
            assert torch.equal(tensor.float(), before[name.replace(f"{STEM}.{new}", f"{STEM}.{KEPT[new]}")].float())
    experts = [name for name in before if any(name.startswith(f"{STEM}.{number}.") for number in KEPT)]
    assert sum(STEM in name for name in found) == len(experts)
    numbers = {f"{STEM}.{old}.": f"{STEM}.{new}." for new, old in enumerate(KEPT)}
    expected = [numbers[name[: len(STEM) + 3]] + name[len(STEM) + 3 :] for name in plain if name[: len(STEM) + 3] in numbers]
    assert load_config(str(tmp_path / "pruned")).quantization_config["ignore"] == expected


@pytest.mark.parametrize(("quantized", "lost"), [(gptq, "3.w1.g_idx"), (fp8, "3.w2.weight_scale"), (nf4, "3.w3.weight.absmax")])
def test_half_a_quantized_expert_is_damage(quantized: Callable, lost: str, tmp_path: Path) -> None:
    folder = mixed(tmp_path / "original", quantized, [f"{STEM}.5.w1"])
    tensors = load_file(folder / SINGLE)
    del tensors[f"{STEM}.{lost}"]
    save_file(tensors, folder / SINGLE)
    with raises("checkpoint.incomplete-expert", f"experts.{lost} is missing"):
        plan_prune(folder, plan_for(tiny_model("mixtral"), KEPT))


def test_files_beside_the_weights_that_name_experts_are_renumbered(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = mixed(tmp_path / "original", gptq, [f"{STEM}.3.w1"], dynamic={f"-:{STEM}.3.w1".replace(".", "\\."): {}})
    (folder / "quantize_config.json").write_text(json.dumps({"dynamic": {f"-:{STEM}.3.w1": {}, f"-:{STEM}.4.w1": {}}}))
    pruned(folder, tiny_model("mixtral"))
    written = json.loads((tmp_path / "pruned" / "quantize_config.json").read_text())
    assert written == {"dynamic": {f"-:{STEM}.1.w1": {}}}
    assert "2 renumbered with the experts, 1 of pruned experts dropped" in capsys.readouterr().out


def layers_beyond(folder: Path, family: str, **config: object) -> Path:
    """A model of four layers whose configuration says three."""
    model = tiny_model(family, **FAMILIES.get(family, {}) | {"num_hidden_layers": 4})
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(written | {"num_hidden_layers": 3} | config))
    return folder


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_layers_beyond_the_configuration_are_no_further_tokens(family: str, tmp_path: Path) -> None:
    folder = layers_beyond(tmp_path / "original", family)
    expected = ("checkpoint.too-many-layers", "3 layers", "have 4", "model.layers.3")
    plan = plan_for(tiny_model(family, num_hidden_layers=3), KEPT)
    with raises(*expected):
        prune_checkpoint(folder, plan, tmp_path / "pruned")
    with raises(*expected):
        StreamedModel(str(folder))
    with raises(*expected):
        load_model(str(folder))


@pytest.mark.parametrize(("key", "count"), [("num_nextn_predict_layers", 1), ("num_mtp_layers", 2), ("num_mtp_modules", 1)])
def test_layers_that_the_configuration_promises_are(key: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = layers_beyond(tmp_path / "original", "mixtral", **{key: count})
    prune_checkpoint(folder, plan_for(tiny_model("mixtral", num_hidden_layers=3), KEPT), tmp_path / "pruned")
    assert "tensors of layers that predict further tokens" in capsys.readouterr().out
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())[key] == 0  # they are not there any more


def test_more_layers_than_are_promised_are_refused(tmp_path: Path) -> None:
    folder = layers_beyond(tmp_path / "original", "mixtral", num_hidden_layers=2, num_mtp_layers=1)
    with raises("checkpoint.too-many-layers", "2 layers and 1 that", "have 4"):
        plan_prune(folder, plan_for(tiny_model("mixtral"), KEPT))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "vocab_size",
            60,
            ("checkpoint.shape-mismatch", "embed_tokens.weight is [64, 32] in the files,", "describes [60, 32] (vocab_size: 60)"),
        ),
        ("num_local_experts", 4, ("checkpoint.other-expert-count", "for 8 experts", "says 4")),
        (
            "intermediate_size",
            8,
            (
                "checkpoint.shape-mismatch",
                "tensors that become",
                "experts",
                "hold 8,192 numbers, and the configuration describes 4,096",
            ),
        ),
        (
            "num_key_value_heads",
            1,
            ("checkpoint.shape-mismatch", "k_proj.weight is [32, 32] in the files, and the configuration describes [16, 32]"),
        ),
    ],
)
def test_a_configuration_of_another_size_is_told_with_both_numbers(
    key: str, value: int, message: tuple[str, ...], tmp_path: Path
) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    plan = plan_for(tiny_model("mixtral", **{key: value}), [0, 1])
    with raises(*message):
        plan_prune(tmp_path, plan)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_a_parameter_that_no_tensor_becomes_is_told(lost: str, tmp_path: Path) -> None:
    folder = changed(tiny_model("mixtral"), tmp_path / "original", {}, remove=lost)
    with raises("checkpoint.tensors-missing", lost):
        plan_prune(folder, plan_for(tiny_model("mixtral"), KEPT))


def test_an_expert_of_an_unknown_name_is_not_copied_under_its_old_number(tmp_path: Path) -> None:
    for name in (f"{STEM}.7.hint", "model.extra.experts.7.w1.weight"):
        folder = changed(tiny_model("mixtral"), tmp_path / name, {name: torch.ones(2)})
        with pytest.raises(UnknownLayoutError, match=f"{name} is of one expert, and no parameter of the model comes from it"):
            plan_prune(folder, plan_for(tiny_model("mixtral"), KEPT))


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = changed(tiny_model("mixtral"), tmp_path / "original", {}, remove="1.block_sparse_moe.experts.4.w3.weight")
    with raises("checkpoint.other-expert-count", "for 7 experts", "says 8", "layers.1", "experts.4.w3.weight"):
        plan_prune(folder, plan_for(tiny_model("mixtral"), KEPT))


@pytest.mark.parametrize(
    ("add", "remove", "reason"),
    [
        ({"model.layers.0.mlp.experts.down_proj": torch.ones(E * H, WIDTH)}, "nothing", "has no row per expert"),
        ({}, "layers.1.mlp.experts.down_proj", r"no tensor becomes model\.layers\.1\.mlp\.experts\.down_proj"),
        ({"model.layers.0.mlp.router.weight_scale_inv": torch.ones(2, 1)}, "nothing", r"router.weight_scale_inv \[2, 1\] has no"),
    ],
)
def test_what_is_not_understood_is_not_cut(add: dict, remove: str, reason: str, tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    with pytest.raises(UnknownLayoutError, match=reason):
        plan_prune(changed(model, tmp_path / "original", add, remove), plan_for(model, KEPT))
