"""Loaded weights are the checkpoint's, whatever loading renamed, fused and cast; those that are not are told.

Every family: tests/moe/test_families.py. In parts, on two ranks: tests/recovery/test_recover.py.

What is written opens with transformers alone, or is not left.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from companions import read_config
from conftest import plan_for, raises, tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.moe import check_loaded, find_blocks, load_model
from toolkit.moe import loading_checks as stock
from toolkit.moe.loading_checks import sum_of_squares


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
    with raises("model.other-weights", "model.layers.1"):
        check_loaded(model, str(folder))


def test_one_element_is_enough(folder: Path) -> None:
    model = loaded(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] += 1e-3
    with raises("model.other-weights", "outside its layers"):
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
    with raises("model.other-weights", "model.layers.0"):
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


KEPT = [0, 3, 5, 6]


def test_a_folder_that_transformers_cannot_open_is_told_and_not_named(tiny_checkpoint, tmp_path: Path, monkeypatch) -> None:
    source = tiny_checkpoint()
    monkeypatch.setattr("toolkit.cuts.writer.copy_companions", lambda source, target: [])
    with raises("checkpoint.does-not-open", "transformers cannot open the tokenizer of what was written to", "Please report"):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("fault", ["missing", "shape", "expert's shape", "config"])
def test_what_is_wrong_with_a_written_folder_is_found(
    tiny_checkpoint, tmp_path: Path, monkeypatch, small: bool, fault: str
) -> None:
    monkeypatch.setattr(stock, "READ_AGAIN", 2 * 10**9 if small else 0)
    folder, source = tiny_checkpoint(), tmp_path / "source"
    shutil.copytree(folder, source)
    stock.check_opens(folder, source)
    tensors = load_file(folder / "model.safetensors")
    expert = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "config":
        (folder / "config.json").write_text(json.dumps(read_config(folder) | {"hidden_size": 64, "head_dim": 16}))
    else:
        name = expert if "expert" in fault else "model.norm.weight"
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with raises("checkpoint.does-not-open", "transformers cannot open the model of what was written to"):
        stock.check_opens(folder, source)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"max_new_tokens": -1}'),
        ("generation_config.json", '{"num_return_sequences": 3}'),
        ("config.json", '{"quantization_config": {}}'),
    ],
)
def test_what_could_not_be_opened_before_is_the_originals_fault(tiny_checkpoint, tmp_path: Path, name: str, content: str) -> None:
    source = tiny_checkpoint()
    file, added = source / name, json.loads(content)
    file.write_text(json.dumps(json.loads(file.read_text()) | added if added else added))
    with raises("checkpoint.source-does-not-open", source):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), tmp_path / "pruned")
