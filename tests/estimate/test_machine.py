import pytest
from conftest import raises

from toolkit.estimate import GPUS, Machine, resolve_machine
from toolkit.estimate.machine import _kind_of

G = 2**30


@pytest.mark.parametrize("text", ["80", "80X", "-8G", "lots", "0G"])
def test_memory_is_a_number_and_a_unit(text: str) -> None:
    assert resolve_machine(gpus=1, gpu_memory="79.6 GiB").gpu_memory == int(79.6 * G)
    with raises("estimate.memory-size", "--gpu-memory", text):
        resolve_machine(gpus=1, gpu_memory=text)


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
