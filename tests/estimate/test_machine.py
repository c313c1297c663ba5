import pytest

from toolkit.estimate import GPUS, Machine, machine
from toolkit.estimate.machine import _kind_of, parse_bytes
from toolkit.runtime.errors import PollardError

G = 2**30


@pytest.mark.parametrize(("text", "size"), [("80G", 80 * G), ("80GB", 80 * G), ("79.6 GiB", int(79.6 * G)), ("1t", 1024 * G)])
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes("--gpu-memory", text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80", "--gpu-memory 80: write a number and its unit (M, G or T), e.g. --gpu-memory 80G."),
        ("80X", "--gpu-memory 80X: write a number and its unit"),
        ("-8G", "--gpu-memory -8G: write a number and its unit"),
        ("lots", "e.g. --gpu-memory 80G."),
        ("0G", "--gpu-memory 0G is no memory at all."),
    ],
)
def test_anything_else_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(PollardError) as error:
        parse_bytes("--gpu-memory", text)
    assert message in str(error.value)


def test_a_known_gpu_brings_its_memory_and_a_given_one_wins() -> None:
    assert machine(gpu="H100") == Machine(1, 1, 80 * G, machine().cpu_memory, GPUS["h100"])
    there = machine(gpus=8, nodes=2, gpu="a100", gpu_memory="40G", cpu_memory="512G")
    assert (there.ranks, there.gpu_memory, there.cpu_memory) == (16, 40 * G, 512 * G)


def test_without_gpus_there_are_two_ranks_in_ram() -> None:
    there = machine(gpus=0)
    assert (there.ranks, there.gpu_memory, there.gpu) == (2, 0, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": "h10"}, "Did you mean `h100`"),
        ({"gpus": 8}, "say what to plan for, --gpu h100"),
        ({"nodes": 0}, "at least one node"),
        ({"gpus": -1, "gpu": "a100"}, "no fewer than 0 GPUs"),
    ],
)
def test_a_machine_that_cannot_be_is_an_error(given: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(PollardError, match=message):
        machine(**given)


def test_the_gpu_at_hand_is_known_by_its_name() -> None:
    kinds = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A10": "a10", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA L40S": "l40s"}
    for name, kind in kinds.items():
        found = _kind_of(name)
        assert found and found.name == kind
    assert _kind_of("Matrox G200") is None
