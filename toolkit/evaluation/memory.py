"""Memory that is, or was, held: of the GPU, or of the process where there is none.

How many questions at a time: as asked, or as many as memory has room for, with the reason.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.runtime.distributed import gather


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


CPU_BATCH_SIZE = 32  # more gain little there: the arithmetic outweighs what a step costs by itself
MAX_BATCH_SIZE = 512  # on a GPU: what is read with more of them at a time is hardly less
USABLE_SHARE = 0.8  # of the free memory: caches grow by copying, and fragments are left


class BatchSize(NamedTuple):
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.number} questions at a time ({self.reason})"


def batch_size_for(
    asked: int | Literal["auto"], model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> BatchSize:
    """The same on every rank; call it on all of them."""
    if asked != "auto":
        return BatchSize(asked, "as asked")
    if model.device.type != "cuda":
        return BatchSize(CPU_BATCH_SIZE, "auto: CPU")
    longest = max(prompts, key=len)
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    fits, free, row = measure_room(model, longest, len(longest) + max_new_tokens, gpus)
    number = min(gather(fits))
    reason = f"auto: {free / 1e9:,.1f} GB of GPU memory are free, at most {row / 1e6:,.1f} MB a question"
    return BatchSize(number, reason)


def rows_that_fit(free: float, row: float) -> int:
    """How many rows of `row` bytes; a power of two."""
    count = max(1, min(MAX_BATCH_SIZE, int(USABLE_SHARE * free / max(row, 1))))
    return 2 ** (count.bit_length() - 1)


@torch.no_grad()
def measure_room(model: PreTrainedModel, prompt: Sequence[int], length: int, gpus: Sequence[int]) -> tuple[int, int, int]:
    """By one pass over the longest prompt, on the GPU with the least room: how many rows fit, the free bytes there, and those
    that a row may take with `length` tokens."""
    before = {}
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
        before[gpu] = torch.cuda.memory_allocated(gpu)
    model(torch.tensor([list(prompt)], device=model.device), use_cache=True, logits_to_keep=1)
    found = []
    for gpu in gpus:
        free = torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
        # What the pass took grows with the length; the next token's scores are wanted in float64, too
        row = (torch.cuda.max_memory_allocated(gpu) - before[gpu]) * length // len(prompt) + 20 * model.config.vocab_size
        found.append((rows_that_fit(free, row), free, row))
    return min(found)
