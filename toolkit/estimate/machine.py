"""The machine an estimate is for: this one, or one described by options."""

import os
import re
from dataclasses import dataclass

import torch

from toolkit.estimate.cpu_speed import CPUSpeed
from toolkit.runtime.amounts import bytes_in
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.runtime.gpus import GPU, GPUS

CPU_RANKS = 2  # what launch.sh starts where there is no GPU
UTILISATION = 0.3  # of a GPU's or processor's peak FLOP/s: the rest goes to communication, padding, small products and Python
USABLE = 0.92  # of a GPU's or a host's memory: the rest is taken by CUDA, the system and fragmentation


@dataclass(frozen=True)
class Machine:
    """`nodes` equal nodes."""

    gpus: int  # per node
    nodes: int
    gpu_memory: int  # bytes of each GPU
    cpu_memory: int  # bytes of RAM of each node
    gpu: GPU | None  # None: their kind is not known
    cpu: CPUSpeed | None = None  # of each node, where it has no GPU; None: it was not measured
    cpu_ranks: int = CPU_RANKS

    @property
    def ranks_per_node(self) -> int:
        return self.gpus or self.cpu_ranks

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def fits_gpu(self, size: int) -> bool:
        """Whether `size` bytes fit on each GPU; true where there is none."""
        return not self.gpus or size <= USABLE * self.gpu_memory

    def seconds(self, flops: float | None, other: float, gpus: int | None = None) -> float | None:
        """`other` plus the seconds that `flops` operations take on `gpus` GPUs (default: all of them), or on all processors where
        there is none. None where the number of operations, or the speed, is not known."""
        if flops is None:
            return None
        if self.gpu is not None:
            return other + flops / (UTILISATION * self.gpu.flops * (gpus or self.gpus * self.nodes))
        return None if self.cpu is None else other + flops / (UTILISATION * self.cpu.flops * self.nodes)

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second at which one rank reads weights; None where it is not known."""
        if self.gpu is not None:
            return self.gpu.bandwidth
        return None if self.cpu is None else self.cpu.bandwidth / self.ranks_per_node


def resolve_machine(
    gpus: int | None = None, nodes: int = 1, gpu: str | None = None, gpu_memory: str | None = None, cpu_memory: str | None = None
) -> Machine:
    """This machine; options that are given replace what it has. `gpus`, `gpu_memory` and `cpu_memory` are per node.

    Raises PollardError for a text that is no number of bytes, for a GPU that is not in `GPUS`, and for GPUs of which neither kind
    nor memory is known.
    """
    if nodes < 1 or (gpus is not None and gpus < 0):
        raise PollardError(
            f"--nodes {nodes} --gpus {gpus}: give at least one node, and no fewer than 0 GPUs on each.",
            code="estimate.machine-size",
        )
    present = torch.cuda.device_count()
    gpus = gpus if gpus is not None else present or (1 if gpu or gpu_memory else 0)
    kind, memory = None, 0
    if gpu is not None:
        kind = GPUS.get(gpu.lower())
        if kind is None:
            raise PollardError(
                f"--gpu {gpu} is no GPU of the table{did_you_mean(gpu.lower(), list(GPUS))}", code="estimate.unknown-gpu"
            )
        memory = kind.memory
    elif present:
        kind = _kind_of(torch.cuda.get_device_name())
        memory = torch.cuda.get_device_properties(0).total_memory
    memory = _bytes_of("--gpu-memory", gpu_memory) if gpu_memory is not None else memory
    if gpus and not memory:
        raise PollardError(
            "This machine has no GPU to look at: say what to plan for, --gpu h100 (with hours) or --gpu-memory 80G (without). "
            f"Known: {', '.join(GPUS)}.",
            code="estimate.no-gpu",
        )
    host = _bytes_of("--cpu-memory", cpu_memory) if cpu_memory is not None else usable_host_memory()
    return Machine(gpus, nodes, memory if gpus else 0, host, kind if gpus else None)


def _bytes_of(option: str, text: str) -> int:
    """Raises PollardError, which names `option`, for what is no number of bytes."""
    try:
        return bytes_in(text)
    except ValueError as error:
        raise PollardError(f"{option}: {error}.", code="estimate.memory-size") from None


def usable_host_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or fewer where a container limits it."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(installed, int(file.read()))
    except (OSError, ValueError):  # no limit reads "max"
        return installed


def _kind_of(device_name: str) -> GPU | None:
    """ "NVIDIA A100-SXM4-80GB" -> a100; the longest name that fits (a10 is in a100)."""
    plain = re.sub(r"[^a-z0-9]", "", device_name.lower())
    return max((gpu for gpu in GPUS.values() if gpu.name in plain), key=lambda gpu: len(gpu.name), default=None)
