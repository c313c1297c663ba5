import pytest
from conftest import raises

from toolkit.estimate import GPUS, Machine, resolve_machine
from toolkit.estimate.machine import _kind_of

G = 2**30


@pytest.mark.parametrize(("text", "size"), [("80G", 80 * G), ("80GB", 80 * G), ("79.6 GiB", int(79.6 * G)), ("1t", 1024 * G)])
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes("--gpu-memory", text) == size


@pytest.mark.parametrize(
    ("text", "code", "example"),
    [
        ("80", "estimate.memory-size", "--gpu-memory 80G"),
        ("80X", "estimate.memory-size", "--gpu-memory 80G"),
        ("-8G", "estimate.memory-size", "--gpu-memory 80G"),
        ("lots", "estimate.memory-size", "--gpu-memory 80G"),
        ("0G", "estimate.no-memory", ""),
    ],
)
def test_anything_else_says_what_to_write(text: str, code: str, example: str) -> None:
    with raises(code, f"--gpu-memory {text}", example):
        parse_bytes("--gpu-memory", text)


def test_a_known_gpu_brings_its_memory_and_a_given_one_wins() -> None:
    assert resolve_machine(gpu="H100") == Machine(1, 1, 80 * G, resolve_machine().cpu_memory, GPUS["h100"])
    there = resolve_machine(gpus=8, nodes=2, gpu="a100", gpu_memory="40G", cpu_memory="512G")
    assert (there.ranks, there.gpu_memory, there.cpu_memory) == (16, 40 * G, 512 * G)


def test_without_gpus_there_are_two_ranks_in_ram() -> None:
    there = resolve_machine(gpus=0)
    assert (there.ranks, there.gpu_memory, there.gpu) == (2, 0, None)


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({"gpu": "h10"}, "estimate.unknown-gpu", "h100"),
        ({"gpus": 8}, "estimate.no-gpu", "--gpu h100"),
        ({"nodes": 0}, "estimate.machine-size", "--nodes 0"),
        ({"gpus": -1, "gpu": "a100"}, "estimate.machine-size", "--gpus -1"),
    ],
)
def test_a_machine_that_cannot_be_is_an_error(given: dict, code: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with raises(code, named):
        resolve_machine(**given)


def test_the_gpu_at_hand_is_known_by_its_name() -> None:
    kinds = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A10": "a10", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA L40S": "l40s"}
    for name, kind in kinds.items():
        found = _kind_of(name)
        assert found and found.name == kind
    assert _kind_of("Matrox G200") is None
