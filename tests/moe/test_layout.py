from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, plan_for, tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.errors import PollardError
from toolkit.moe import load_config, load_model, prune_checkpoint, slice_model
from toolkit.moe.layout import UnknownLayoutError
from toolkit.moe.rewrite import plan_job
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
    expected = slice_model(load_model(str(folder), dtype="checkpoint"), plan_for(model, KEPT)).state_dict()
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
    with pytest.raises(PollardError, match=r"pruned is quantized \(fp8\): its checkpoint can be pruned, but not be run"):
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


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = changed(tiny_model("mixtral"), tmp_path / "original", {}, remove="1.block_sparse_moe.experts.4.w3.weight")
    with pytest.raises(
        PollardError, match=r"for 7 experts, and its configuration says 8: .*layers\.1.*experts\.4\.w3\.weight is miss"
    ):
        plan_job(folder, plan_for(tiny_model("mixtral"), KEPT))


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
        plan_job(changed(model, tmp_path / "original", add, remove), plan_for(model, KEPT))
