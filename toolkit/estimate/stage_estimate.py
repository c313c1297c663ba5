"""What a plan is made of: bytes, floating-point operations and seconds of each stage, and whether that fits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from toolkit.estimate.machine import USABLE, Machine

BANDWIDTH_SHARE = 0.5  # of a GPU's memory bandwidth, while it generates token by token
DISK = 2e9  # bytes per second, read or written


@dataclass(frozen=True)
class StageEstimate:
    """`gpu`: bytes per GPU at the fullest moment, by part; `host`: bytes of RAM per node; `disk`: bytes written."""

    name: str
    work: str
    gpu: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    flops: float | None = 0.0  # None: nobody knows how many examples there are
    seconds: float | None = None  # None: that, or a GPU of unknown speed
    notes: tuple[str, ...] = ()

    @property
    def gpu_bytes(self) -> int:
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    def lacks(self, machine: Machine) -> list[str]:
        """Which memory is too small: "GPU", "host"."""
        found = [] if machine.room_for(self.gpu_bytes) else ["GPU"]
        return found + (["host"] if self.host_bytes > USABLE * machine.cpu_memory else [])


@dataclass(frozen=True)
class Estimate:
    """One recipe on one machine."""

    machine: Machine
    parameters: tuple[int, int]  # original, pruned
    active: tuple[int, int]
    experts: tuple[int, int]  # per block: now, kept
    tokens_per_step: int
    steps: int | None
    stages: list[StageEstimate]
    assumptions: list[str]

    @property
    def disk(self) -> int:
        return sum(stage.disk for stage in self.stages)

    @property
    def lacking(self) -> dict[str, list[str]]:
        """The stages that do not fit, and what they lack."""
        return {stage.name: lacks for stage in self.stages if (lacks := stage.lacks(self.machine))}


def in_turn(name: str, work: str, parts: Sequence[StageEstimate]) -> StageEstimate:
    """Several stages as one: memory at the fullest moment, the rest in all."""
    flops, seconds = ([getattr(part, key) for part in parts] for key in ("flops", "seconds"))
    return StageEstimate(
        name=name,
        work=work,
        gpu=max((part.gpu for part in parts), key=lambda gpu: sum(gpu.values())),
        host=max((part.host for part in parts), key=lambda host: sum(host.values())),
        disk=sum(part.disk for part in parts),
        flops=None if None in flops else sum(flops),
        seconds=None if None in seconds else sum(seconds),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def on_machine(machine: Machine, gpu: dict[str, int], host: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """`gpu` per rank and `host` per node as they lie on this machine: without GPUs, everything is in RAM."""
    if machine.gpus:
        return gpu, host
    ranks = machine.ranks_per_node
    return {}, {part: ranks * gpu.get(part, 0) + host.get(part, 0) for part in gpu | host}
