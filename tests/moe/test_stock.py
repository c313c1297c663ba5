"""What is written opens with transformers alone, or is not left."""

import json
import shutil
from pathlib import Path

import pytest
from companions import read_config
from conftest import plan_for, tiny_model
from safetensors.torch import load_file, save_file

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.moe import loading_checks as stock
from toolkit.runtime.errors import PollardError

KEPT = [0, 3, 5, 6]


def test_a_folder_that_transformers_cannot_open_is_told_and_not_named(tiny_checkpoint, tmp_path: Path, monkeypatch) -> None:
    source = tiny_checkpoint()
    monkeypatch.setattr("toolkit.cuts.writer.copy_companions", lambda source, target: [])
    with pytest.raises(PollardError, match=r"transformers cannot open the tokenizer of what was written to .*Please report"):
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
    with pytest.raises(PollardError, match="transformers cannot open the model of what was written to"):
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
    with pytest.raises(PollardError, match=rf"transformers cannot open {source}, and so not .*Put that right there"):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), tmp_path / "pruned")
