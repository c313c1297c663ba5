"""Memory that is, or was, held: of the GPU, or of the process where there is none."""

from contextlib import suppress
from pathlib import Path

import torch


def reset_peak_memory(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        return
    with suppress(OSError):  # where it may not be written, the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(where: torch.device) -> int:
    """Bytes, since the reset: the most GPU memory allocated, or the most the whole process held (libraries and all)."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return _of_proc("self/status", "VmHWM:")


def held_memory(where: torch.device) -> int:
    """Bytes, now: allocated on the GPU, or held by the process."""
    return torch.cuda.memory_allocated(where) if where.type == "cuda" else _of_proc("self/status", "VmRSS:")


def free_memory(where: torch.device) -> int:
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _of_proc("meminfo", "MemAvailable:")


def _of_proc(file: str, key: str) -> int:
    return 1024 * int(Path("/proc", file).read_text().partition(key)[2].split()[0])
