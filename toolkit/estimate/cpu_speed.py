"""How fast this machine's processors are: measured in a tenth of a second, for no table says it of the cores that a job gets."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SECONDS = 0.05  # of each measurement
SIDE = 256  # of the matrices: near the sizes of a small model's layers, and done within one turn of a busy processor
NUMBERS = 2**22  # float32, 16 MB: more than the cache of a core holds


@dataclass(frozen=True)
class CPUSpeed:
    """Of one process or, added up, of all on a machine."""

    flops: float  # float32 operations per second of a product of matrices
    bandwidth: float  # bytes per second, read and written

    def __add__(self, other: "CPUSpeed") -> "CPUSpeed":
        return CPUSpeed(self.flops + other.flops, self.bandwidth + other.bandwidth)


def measure_cpu() -> CPUSpeed:
    """One thread's speed, times the threads that torch uses: on a busy machine several would only wait for each other, and tell
    nothing. Of several ranks on one machine all must measure at once: they share its memory."""
    threads = torch.get_num_threads()
    left, out = torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
    numbers, copy = torch.rand(NUMBERS), torch.empty(NUMBERS)
    torch.set_num_threads(1)
    try:
        products = _per_second(lambda: torch.mm(left, left, out=out))
        copies = _per_second(lambda: copy.copy_(numbers))
    finally:
        torch.set_num_threads(threads)
    return CPUSpeed(threads * 2 * SIDE**3 * products, 2 * numbers.nbytes * copies)


def _per_second(work: Callable[[], object]) -> float:
    """Of the fastest call: what other programs do on the machine is not counted."""
    work()  # the first call plans
    started, fastest = time.perf_counter(), float("inf")
    while (before := time.perf_counter()) - started < SECONDS:
        work()
        fastest = min(fastest, time.perf_counter() - before)
    return 1 / fastest
