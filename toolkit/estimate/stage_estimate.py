"""An estimate: bytes, floating-point operations and seconds of each stage, and whether they fit on a machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from toolkit.estimate.machine import USABLE, Machine

BANDWIDTH_SHARE = 0.5  # of a GPU's memory bandwidth, reached while a model generates token by token
DISK_BANDWIDTH = 2e9  # bytes per second, read or written


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes on one machine."""

    name: str
    work: str  # one line for people
    gpu: dict[str, int] = field(default_factory=dict)  # part -> bytes on each GPU, at the fullest moment
    host: dict[str, int] = field(default_factory=dict)  # part -> bytes of RAM on each node
    disk: int = 0  # bytes written
    flops: float | None = 0.0  # None: the number of examples is not known
    seconds: float | None = None  # None: the number of examples or the GPU's speed is not known
    notes: tuple[str, ...] = ()

    @property
    def gpu_bytes(self) -> int:
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    def lacks(self, machine: Machine) -> list[str]:
        """Which memory is too small: "GPU", "host"."""
        missing = [] if machine.fits_gpu(self.gpu_bytes) else ["GPU"]
        return missing + (["host"] if self.host_bytes > USABLE * machine.cpu_memory else [])


def preceded(stage: StageEstimate, first: StageEstimate, note: str, machine: Machine) -> StageEstimate:
    """A stage that does other work first, with the same model; `note` says what."""
    gpu, host = stage.gpu, stage.host
    if machine.gpus:
        gpu, host = max(gpu, first.gpu, key=lambda parts: sum(parts.values())), host | first.host
    flops, seconds = (
        None if before is None or then is None else then + before
        for before, then in ((first.flops, stage.flops), (first.seconds, stage.seconds))
    )
    return replace(stage, gpu=gpu, host=host, flops=flops, seconds=seconds, notes=(*stage.notes, note))


@dataclass(frozen=True)
class Estimate:
    """What one recipe takes on one machine."""

    machine: Machine
    parameters: tuple[int, int]  # original, pruned
    active: tuple[int, int]  # parameters active per token: original, pruned
    experts: tuple[int, int]  # per block: original, pruned
    tokens_per_step: int  # of fine-tuning
    steps: int | None  # of fine-tuning; None: the number of examples is not known
    stages: list[StageEstimate]
    assumptions: list[str]
    width: tuple[int, int] | None = None  # channels per expert: original, pruned; None where they stay
    layers: tuple[int, int] | None = None  # decoder layers: original, pruned; None where they stay
    at_most: bool = False  # the pruned model is the largest shape within limits, for none is chosen yet

    @property
    def disk(self) -> int:
        return sum(stage.disk for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where those of one are not known."""
        each = [stage.seconds for stage in self.stages]
        return None if None in each else sum(filter(None, each))

    @property
    def lacking(self) -> dict[str, list[str]]:
        """Per stage that does not fit, which memory is too small."""
        return {stage.name: lacks for stage in self.stages if (lacks := stage.lacks(self.machine))}


def combined_estimate(name: str, work: str, parts: Sequence[StageEstimate]) -> StageEstimate:
    """One estimate of stages that run one after the other: memory at the fullest moment, disk and time summed."""
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


def repeated(estimate: StageEstimate, times: int) -> StageEstimate:
    """The same, one time after the other: as much memory, and as much written, for so many times the work."""
    flops, seconds = (None if value is None else times * value for value in (estimate.flops, estimate.seconds))
    return replace(estimate, flops=flops, seconds=seconds)


def memory_on(machine: Machine, gpu: dict[str, int], host: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Memory per rank (`gpu`) and per node (`host`) as (bytes per GPU, bytes of RAM per node), by part.

    Without GPUs the memory of every rank is part of its node's RAM.
    """
    if machine.gpus:
        return gpu, host
    ranks = machine.ranks_per_node
    return {}, {part: ranks * gpu.get(part, 0) + host.get(part, 0) for part in gpu | host}


def count(number: int | None) -> str:
    """1234 -> "1,234"; "unknown" where it is None."""
    return "unknown" if number is None else f"{number:,}"
