"""The machine that a stage ran on, in the words of its makers: for the manifest and the report."""

import os
import platform
from functools import cache

from toolkit.runtime.files import JsonObject


@cache
def hardware() -> JsonObject:
    """{"cpu": "AMD EPYC 7B13", "cores": 2, "gpus": ["NVIDIA H100 80GB HBM3"]}: of this node. `cores`: those that this process may
    use; `gpus`: those that it sees."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def _cpu_name() -> str:
    """The model name that Linux knows; else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2] for line in file if line.startswith("model name"))
            return " ".join(next(names, "").split()) or platform.machine()
    except OSError:
        return platform.machine()
