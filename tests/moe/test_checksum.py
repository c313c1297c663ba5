"""Loaded weights are the checkpoint's, whatever loading renamed, fused and cast; those that are not are told.

Every family: tests/moe/test_families.py. In parts, on two ranks: tests/recovery/test_recover.py.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.moe import check_loaded, find_blocks, load_model
from toolkit.moe.loading_checks import sum_of_squares
from toolkit.runtime.errors import PollardError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("mixtral").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def loaded(folder: Path, **options: str) -> PreTrainedModel:
    return load_model(str(folder), **options)  # type: ignore[arg-type]


def test_experts_that_were_initialised_instead_of_loaded_are_caught_and_their_layer_named(folder: Path) -> None:
    model = loaded(folder)
    check_loaded(model, str(folder))
    torch.nn.init.normal_(find_blocks(model)[1].experts.gate_up_proj, std=0.02)  # type: ignore[arg-type]
    with pytest.raises(PollardError, match=r"weights are not those in .*: model\.layers\.1 \(sum of squares of model\.layers\.1"):
        check_loaded(model, str(folder))


def test_one_element_is_enough(folder: Path) -> None:
    model = loaded(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] += 1e-3
    with pytest.raises(PollardError, match="outside its layers"):
        check_loaded(model, str(folder))


@pytest.mark.parametrize(("stored", "wanted"), [(torch.bfloat16, "float32"), (torch.float32, "bfloat16")])
def test_another_dtype_is_no_other_model(tmp_path: Path, stored: torch.dtype, wanted: str) -> None:
    tiny_model("qwen3_moe", dtype=stored).save_pretrained(tmp_path)
    check_loaded(loaded(tmp_path, dtype=wanted), str(tmp_path))


@pytest.mark.parametrize("twice", [False, True])
def test_tied_weights_count_once_however_often_they_are_stored(tmp_path: Path, twice: bool) -> None:
    tiny_model("mixtral", tie_word_embeddings=True).save_pretrained(tmp_path)
    if twice:
        tensors = load_file(tmp_path / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_loaded(loaded(tmp_path), str(tmp_path))


def test_a_tensor_that_the_files_lack_is_told(folder: Path) -> None:
    model, index = loaded(folder), folder / "model.safetensors.index.json"
    known, lacking = json.loads(index.read_text()), "model.layers.0.self_attn.q_proj.weight"
    file = folder / known["weight_map"].pop(lacking)
    index.write_text(json.dumps(known))
    save_file({name: tensor for name, tensor in load_file(file).items() if name != lacking}, file, {"format": "pt"})
    with pytest.raises(PollardError, match=r"model\.layers\.0"):
        check_loaded(model, str(folder))


def test_a_checkpoint_whose_numbers_are_computed_while_it_loads_is_left_out_and_said_to_be(folder: Path, capsys) -> None:
    model, config = loaded(folder), json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    check_loaded(model, str(folder))
    assert "not compared with the checkpoint: it is quantized" in capsys.readouterr().out


def test_large_tensors_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 11)
    whole = sum_of_squares(tensor)
    monkeypatch.setattr("toolkit.moe.loading_checks.PIECE", 10)
    assert sum_of_squares(tensor) == pytest.approx(whole, rel=1e-12)
