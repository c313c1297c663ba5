"""Written in parts is written as transformers writes; on two ranks under ZeRO-3: tests/recovery/test_recover.py."""

import json
from pathlib import Path

import pytest
import torch
from conftest import logits_of, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from toolkit.moe import write_partitioned
from toolkit.moe.partition import ShardWriter


# A whole model gathers nothing, and is written layer by layer all the same.
@pytest.mark.parametrize("file_bytes", [10**9, 20_000])
def test_layer_by_layer_is_what_save_pretrained_writes(family: str, file_bytes: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("toolkit.moe.partition.FILE_BYTES", file_bytes)
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "stock")
    (tmp_path / "ours").mkdir()
    write_partitioned(model, tmp_path / "ours")
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    ours = {name: tensor for file in files for name, tensor in load_file(file).items()}
    theirs = load_file(tmp_path / "stock" / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (len(files) > 1) == (file_bytes < 10**9)
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "stock" / "config.json").read_bytes())
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")), logits_of(model))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    write_partitioned(tiny_model("mixtral", tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_index_names_every_tensor_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.moe.partition.FILE_BYTES", 100)
    files = ShardWriter(tmp_path)
    for layer in "abc":
        files.add({f"{layer}.x": torch.ones(30), f"{layer}.y": torch.ones(2)})
    files.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 32 * 4
    assert {index["weight_map"]["a.x"], index["weight_map"]["a.y"]} == {"model-00001-of-00003.safetensors"}
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
