"""Kinds of GPUs, and what their vendors' data sheets say of them."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU, from its vendor's data sheet."""

    name: str
    memory: int  # bytes
    flops: float  # per second: peak of dense bfloat16 (float16 on V100, which has no bfloat16)
    bandwidth: float  # bytes per second


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("v100", 32 * GIB, 125e12, 0.90e12),
        GPU("rtx3090", 24 * GIB, 71e12, 0.94e12),
        GPU("rtx4090", 24 * GIB, 165e12, 1.01e12),
        GPU("l4", 24 * GIB, 121e12, 0.30e12),
        GPU("a10", 24 * GIB, 125e12, 0.60e12),
        GPU("l40s", 48 * GIB, 362e12, 0.86e12),
        GPU("a100", 80 * GIB, 312e12, 2.04e12),
        GPU("h100", 80 * GIB, 989e12, 3.35e12),
        GPU("h200", 141 * GIB, 989e12, 4.80e12),
        GPU("b200", 180 * GIB, 2250e12, 8.00e12),
    )
}
