import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolkit.moe.model_files import INDEX, SINGLE
from toolkit.moe.tensor_files import Piece, read_header, stored_tensors, write_file
from toolkit.runtime.errors import PollardError

TENSORS = {
    "bf16": torch.arange(24).reshape(8, 3).to(torch.bfloat16),
    "fp8": torch.arange(40).reshape(8, 5).to(torch.float8_e4m3fn),
    "number": torch.tensor(7.0),
    "one": torch.arange(8).reshape(1, 8).float(),
    "wide": torch.arange(48).reshape(8, 2, 3).double(),
}


def test_pieces_are_what_indexing_gives_in_every_dtype(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "source.safetensors")
    stored = read_header(tmp_path / "source.safetensors")
    rows = [0, 1, 2, 5, 7]
    whole = [Piece(f"{name}.whole", tensor) for name, tensor in stored.items()]
    write_file(
        tmp_path / "target.safetensors",
        [*whole, *(Piece(name, tensor, rows) for name, tensor in stored.items() if name != "number")],
    )
    found = load_file(tmp_path / "target.safetensors")
    for name, tensor in TENSORS.items():
        assert torch.equal(found[f"{name}.whole"].float(), tensor.float()) and found[f"{name}.whole"].dtype == tensor.dtype
        if name != "number":
            expected = tensor[:, rows] if name == "one" else tensor[rows]
            assert found[name].dtype == tensor.dtype and torch.equal(found[name].float(), expected.float())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_every_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    save_file({f"fp8.{n}": torch.zeros(3).to(torch.float8_e4m3fn) for n in range(3)} | TENSORS, tmp_path / "source.safetensors")
    write_file(tmp_path / "t.safetensors", [Piece(n, t) for n, t in read_header(tmp_path / "source.safetensors").items()])
    sizes = {"F64": 8, "F32": 4, "BF16": 2, "F8_E4M3": 1}
    assert all(tensor.begin % sizes[tensor.dtype] == 0 for tensor in read_header(tmp_path / "t.safetensors").values())
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def sharded(folder: Path) -> Path:
    save_file({"a": torch.zeros(4)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4)}, folder / "model-00002-of-00002.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def test_an_index_leads_to_all_files(tmp_path: Path) -> None:
    assert [*stored_tensors(sharded(tmp_path))] == ["a", "b"]


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    second = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    for damaged, message in (
        (whole[:-4], r"00002\.safetensors is cut off: it has \d+ bytes of \d+"),
        (whole[:20], r"00002\.safetensors is no whole safetensors file"),
        (b"", r"00002\.safetensors is no whole safetensors file"),
        (b"\x08" + whole[1:], r"00002\.safetensors is no whole safetensors file"),
    ):
        second.write_bytes(damaged)
        with pytest.raises(PollardError, match=message):
            stored_tensors(tmp_path)
    second.unlink()
    with pytest.raises(PollardError, match=r"Cannot read .*00002\.safetensors: No such file"):
        stored_tensors(tmp_path)
    save_file({"c": torch.ones(4)}, second)
    with pytest.raises(PollardError, match=r"names 1 tensor\(s\) that are not in their file, such as b in model-00002"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(PollardError, match=r"index\.json is damaged"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(PollardError, match=rf"Cannot read .*{SINGLE}"):
        stored_tensors(tmp_path)
