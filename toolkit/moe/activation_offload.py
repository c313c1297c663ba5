"""Where the tensors of waiting forward passes are kept: on the device while it has room, else in memory, else on disk.

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
    """How many bytes each place may take; without a device every tensor stays where it is."""

    def __init__(self, device: torch.device | None = None, excluded: Iterable[torch.Tensor] = ()) -> None:
        """`excluded`: tensors that never move, such as the model's own (some models hand them to their layers)."""
        self.excluded = {id(tensor) for tensor in excluded}
        self.free_bytes: dict[str, float] = {}  # per place, the nearest first
        self.spilled = False
        if device is not None and device.type == "cuda":
            self.free_bytes[str(device)] = DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        if device is not None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            self.free_bytes["cpu"] = MEMORY_SHARE * psutil.virtual_memory().available / ranks

    def capacity(self, needed: int) -> int | None:
        """How many passes that hold `needed` bytes each can wait before one goes to disk; None: any number. The frames of a pass
        hold its embeddings besides, and these stay on the device."""
        if not self.free_bytes or not needed:
            return None
        nearest, *_ = self.free_bytes.values()
        return int(min(sum(self.free_bytes.values()) // (2 * needed), nearest // needed))

    def reserve(self, needed: int) -> str | None:
        """The nearest place with `needed` bytes left, which are then taken; None: the tensors stay where they are."""
        for place, free in self.free_bytes.items():
            if needed <= free:
                self.free_bytes[place] -= needed
                return place
        if self.free_bytes and not self.spilled:
            say(f"  hidden states beyond {MEMORY_SHARE:.0%} of the free memory wait on disk, in {tempfile.gettempdir()}")
            self.spilled = True
        return DISK if self.free_bytes else None


class OffloadedTensors:
    """The tensors of one waiting forward pass. Their place is chosen once: at every layer a pass holds about as much."""

    def __init__(self, budget: ActivationOffload) -> None:
        self.budget = budget
        self.place: str | None = None
        self.nbytes = 0  # of all that waits, moved or not
        self.moved: list[tuple[torch.Tensor, torch.device]] = []  # and the device each came from

    def offload(self, held: Any) -> None:
        """Moves the tensors in `held` (nested tuples, lists and mappings) away until `fetch`."""
        tensors = {id(tensor): tensor for tensor in _tensors(held) if id(tensor) not in self.budget.excluded}
        if self.place is None:
            self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
            self.place = self.budget.reserve(self.nbytes)
        for tensor in tensors.values():
            device = tensor.device
            if self.place == DISK and tensor.untyped_storage().filename is None:  # masks and positions may lie there already
                tensor.data = _on_disk(tensor)
            elif self.place not in (None, DISK, str(device)):
                tensor.data = tensor.to(self.place)
            if tensor.device != device:
                self.moved.append((tensor, device))

    def fetch(self) -> None:
        """Brings back what came from another device; a mapped file is as good as memory."""
        for tensor, device in self.moved:
            tensor.data = tensor.to(device)
        self.moved = []


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
