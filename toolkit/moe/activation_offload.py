"""Where the tensors of waiting forward passes stand: on the device while there is room, else in memory, else on disk.

A tensor keeps its identity and only its data moves, so the frames of the forward pass that hold it need not know.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psutil
import torch

from toolkit.runtime.distributed import say

DEVICE_SHARE, MEMORY_SHARE = 0.25, 0.5  # of what is free when the first pass begins
DISK = "disk"


class ActivationOffload:
    """The room there is; without a device everything stays where it is."""

    def __init__(self, device: torch.device | None = None, never: Iterable[torch.Tensor] = ()) -> None:
        """`never` are the tensors of the model itself: some models hand them to their layers."""
        self.never = {id(tensor) for tensor in never}
        self.room: dict[str, float] = {}  # bytes left in each place, the nearest first
        self.spilled = False
        if device is not None and device.type == "cuda":
            self.room[str(device)] = DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        if device is not None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            self.room["cpu"] = MEMORY_SHARE * psutil.virtual_memory().available / ranks

    def place(self, needed: int) -> str | None:
        """The nearest place with that many bytes left; None: stay."""
        for place, room in self.room.items():
            if needed <= room:
                self.room[place] -= needed
                return place
        if self.room and not self.spilled:
            say(f"  hidden states beyond {MEMORY_SHARE:.0%} of the free memory wait on disk, in {tempfile.gettempdir()}")
            self.spilled = True
        return DISK if self.room else None


class OffloadedTensor:
    """One forward pass's place, chosen where it first waits: at every layer it holds about as much."""

    def __init__(self, parking: ActivationOffload) -> None:
        self.parking = parking
        self.place: str | None = None
        self.away: list[tuple[torch.Tensor, torch.device]] = []  # and where it belongs

    def park(self, held: Any) -> None:
        """`held` (nested tuples, lists and mappings) will not be needed before `fetch`."""
        tensors = {id(tensor): tensor for tensor in _tensors(held) if id(tensor) not in self.parking.never}
        if self.place is None:
            self.place = self.parking.place(sum(tensor.nbytes for tensor in tensors.values()))
        for tensor in tensors.values():
            home = tensor.device
            if self.place == DISK and tensor.untyped_storage().filename is None:  # masks and positions may lie there already
                tensor.data = _on_disk(tensor)
            elif self.place not in (None, DISK, str(home)):
                tensor.data = tensor.to(self.place)
            if tensor.device != home:
                self.away.append((tensor, home))

    def fetch(self) -> None:
        """Brings back what belongs on another device; a mapped file is as good as memory."""
        for tensor, home in self.away:
            tensor.data = tensor.to(home)
        self.away = []


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, Mapping):
        yield from _tensors(list(held.values()))
    elif isinstance(held, (tuple, list)):
        for value in held:
            yield from _tensors(value)


def _on_disk(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in a memory-mapped file without a name: it is gone with the tensor."""
    with tempfile.NamedTemporaryFile(prefix="pollard-") as file:
        copy = torch.from_file(file.name, shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
    return copy[: tensor.numel()].view(tensor.shape).copy_(tensor)
