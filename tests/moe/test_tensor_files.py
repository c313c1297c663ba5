import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import raises
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolkit.moe import tensor_files
from toolkit.moe.model_files import INDEX, SINGLE
from toolkit.moe.tensor_files import Piece, read_header, row_axis, stored_tensors, write_file

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
    rows = np.array([0, 1, 2, 5, 7])
    whole = [Piece(f"{name}.whole", tensor) for name, tensor in stored.items()]
    write_file(
        tmp_path / "target.safetensors",
        [*whole, *(Piece(name, tensor, {row_axis(tensor.shape): rows}) for name, tensor in stored.items() if name != "number")],
    )
    found = load_file(tmp_path / "target.safetensors")
    for name, tensor in TENSORS.items():
        assert torch.equal(found[f"{name}.whole"].float(), tensor.float()) and found[f"{name}.whole"].dtype == tensor.dtype
        if name != "number":
            expected = tensor[:, rows] if name == "one" else tensor[rows]
            assert found[name].dtype == tensor.dtype and torch.equal(found[name].float(), expected.float())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


# What a cut of two axes leaves (some experts, of each some columns) is what indexing twice gives, however short the runs.
@pytest.mark.parametrize("short_run", [1, 4096])
@pytest.mark.parametrize(
    "indices",
    [{0: [1, 4, 5]}, {1: [0, 2]}, {2: [3]}, {0: [7], 2: [0, 1, 3]}, {0: [0, 1], 1: [1, 2]}, {0: [2, 6], 1: [0], 2: [1, 3]}],
)
def test_indices_along_several_axes_stay(
    indices: dict[int, list[int]], short_run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "SHORT_RUN", short_run)
    tensors = {"f32": torch.arange(8 * 3 * 4).reshape(8, 3, 4).float(), "fp8": torch.randn(8, 3, 4).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "source.safetensors")
    kept = {axis: np.array(along) for axis, along in indices.items()}
    pieces = [Piece(name, tensor, kept) for name, tensor in read_header(tmp_path / "source.safetensors").items()]
    write_file(tmp_path / "target.safetensors", pieces)
    written, sizes = load_file(tmp_path / "target.safetensors"), {piece.name: (piece.shape, piece.bytes) for piece in pieces}
    for name, tensor in tensors.items():
        expected = tensor.float()
        for axis, along in indices.items():
            expected = expected.index_select(axis, torch.tensor(along))
        assert torch.equal(written[name].float(), expected)
        assert sizes[name] == (tuple(expected.shape), written[name].nbytes)


# Channels of experts in one tensor: of each expert that stays others.
@pytest.mark.parametrize("short_run", [1, 4096])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("experts", [None, [1, 4, 7]])
def test_indices_may_differ_along_the_first_axis(
    axis: int, experts: list[int] | None, short_run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "SHORT_RUN", short_run)
    tensor = torch.randn(8, 6, 6)
    save_file({"fused": tensor}, tmp_path / "source.safetensors")
    rows = experts or list(range(8))
    channels = np.stack([np.sort(np.random.default_rng(row).choice(6, 2, replace=False)) for row in rows])
    indices = {axis: channels} | ({0: np.array(experts)} if experts else {})
    piece = Piece("cut", read_header(tmp_path / "source.safetensors")["fused"], indices)
    write_file(tmp_path / "target.safetensors", [piece])
    expected = torch.stack(
        [tensor[row].index_select(axis - 1, torch.from_numpy(of_row)) for row, of_row in zip(rows, channels, strict=True)]
    )
    written = load_file(tmp_path / "target.safetensors")["cut"]
    assert torch.equal(written, expected) and (piece.shape, piece.bytes) == (tuple(expected.shape), written.nbytes)


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
        (whole[:-4], ("checkpoint.damaged-file", "00002.safetensors is cut off: it has", "bytes of")),
        (whole[:20], ("checkpoint.damaged-file", "00002.safetensors is no whole safetensors file")),
        (b"", ("checkpoint.damaged-file", "00002.safetensors is no whole safetensors file")),
        (b"\x08" + whole[1:], ("checkpoint.damaged-file", "00002.safetensors is no whole safetensors file")),
    ):
        second.write_bytes(damaged)
        with raises(*message):
            stored_tensors(tmp_path)
    second.unlink()
    with raises("checkpoint.missing-file", "00002.safetensors"):
        stored_tensors(tmp_path)
    save_file({"c": torch.ones(4)}, second)
    with raises("checkpoint.misleading-index", "names 1 tensor", "b in model-00002"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with raises("checkpoint.damaged-index", "index.json"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).unlink()
    with raises("checkpoint.missing-file", SINGLE):
        stored_tensors(tmp_path)
