"""Memory in use, at its peak and free, of the GPU or else of the process; and the batch size that fits into it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.runtime.distributed import gather

CPU_BATCH_SIZE = 32  # larger ones gain little there: the arithmetic outweighs the fixed cost of a step
MAX_BATCH_SIZE = 512  # on a GPU: larger ones hardly save reading of weights
USABLE_SHARE = 0.8  # of the free memory: caches grow by copying, and some is lost to fragmentation


def reset_peak_memory(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        return
    with suppress(OSError):  # not writable everywhere: then the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(where: torch.device) -> int:
    """Bytes since the reset: the peak of allocated GPU memory, or of the resident memory of the whole process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return _of_proc("self/status", "VmHWM:")


def held_memory(where: torch.device) -> int:
    """Bytes at present: allocated on the GPU, or resident in the process."""
    return torch.cuda.memory_allocated(where) if where.type == "cuda" else _of_proc("self/status", "VmRSS:")


def free_memory(where: torch.device) -> int:
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _of_proc("meminfo", "MemAvailable:")


def _of_proc(file: str, key: str) -> int:
    return 1024 * int(Path("/proc", file).read_text().partition(key)[2].split()[0])


class BatchSize(NamedTuple):
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.number} questions at a time ({self.reason})"


def batch_size_for(
    setting: int | Literal["auto"], model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> BatchSize:
    """The batch size of a recipe's setting, the same on every rank; call it on all of them."""
    if setting != "auto":
        return BatchSize(setting, "as asked")
    if model.device.type != "cuda":
        return BatchSize(CPU_BATCH_SIZE, "auto: CPU")
    longest = max(prompts, key=len)
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    fitting, free, row = measure_room(model, longest, len(longest) + max_new_tokens, gpus)
    number = min(gather(fitting))
    reason = f"auto: {free / 1e9:,.1f} GB of GPU memory are free, at most {row / 1e6:,.1f} MB a question"
    return BatchSize(number, reason)


def rows_that_fit(free: float, row: float) -> int:
    """How many rows of `row` bytes fit into `free` bytes, as a power of two; at least 1."""
    count = max(1, min(MAX_BATCH_SIZE, int(USABLE_SHARE * free / max(row, 1))))
    return 2 ** (count.bit_length() - 1)


class Room(NamedTuple):
    """Of the GPU with the least room; ordered by the rows that fit."""

    rows: int
    free: int  # bytes
    row: int  # bytes that a row takes


@torch.no_grad()
def measure_room(model: PreTrainedModel, prompt: Sequence[int], length: int, gpus: Sequence[int]) -> Room:
    """The room for rows of `length` tokens, measured by one pass over the longest prompt."""
    before = {}
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
        before[gpu] = torch.cuda.memory_allocated(gpu)
    model(torch.tensor([list(prompt)], device=model.device), use_cache=True, logits_to_keep=1)
    rooms = []
    for gpu in gpus:
        free = torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
        # What the pass took grows with the length; the next token's scores are also held in float64
        row = (torch.cuda.max_memory_allocated(gpu) - before[gpu]) * length // len(prompt) + 20 * model.config.vocab_size
        rooms.append(Room(rows_that_fit(free, row), free, row))
    return min(rooms)
