"""The most memory that was held: of the GPU, or of the process where there is none."""

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
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
