"""How long a run will take, and what it writes, as far as that can be computed before it: a line of the first screen.

It is the estimate of `pollard estimate` for the stages that are to be done, on this machine and these ranks. Where there is no
GPU, the processors' speed is measured first.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from toolkit.estimate import Machine, StageEstimate, measure_cpu, resolve_machine
from toolkit.estimate.machine import UTILISATION
from toolkit.runtime.distributed import gather, ranks_per_node, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import duration, size


def machine_of_run() -> Machine:
    """The machine that these ranks are on. Collective: call it on every rank."""
    local, nodes = ranks_per_node(), max(1, world_size() // ranks_per_node())
    if torch.cuda.is_available():
        return resolve_machine(gpus=local, nodes=nodes)
    first, *others = gather(measure_cpu())
    return replace(resolve_machine(gpus=0, nodes=nodes), cpu_ranks=local, cpu=sum(others, first))


def expected_line(estimates: Iterable[Callable[[], StageEstimate | None]], machine: Machine) -> str:
    """ "about 1 min 40 s of computing (2.9e+12 operations at 30 % of the 96 GFLOP/s measured here) …; 0.12 GiB of disk"."""
    found = []
    for estimate in estimates:
        try:
            found.append(estimate())
        except PollardError as error:  # what cannot be estimated can be run: with the stage's own message, if it cannot
            return f"not to be estimated: {str(error).splitlines()[0]}"
    known = [stage for stage in found if stage is not None]
    disk = f"{size(sum(stage.disk for stage in known))} of disk"
    if any(stage.seconds is None or stage.flops is None for stage in known):
        why = "the kind of GPU is not known" if machine.gpus and not machine.gpu else "how much a stage has to do is not known"
        return f"how long cannot be computed beforehand ({why}); {disk}"
    seconds, flops = sum(stage.seconds or 0.0 for stage in known), sum(stage.flops or 0.0 for stage in known)
    return (
        f"about {duration(seconds)} of computing, {disk} ({flops:.1e} operations at {UTILISATION:.0%} of {_speed_of(machine)}; "
        "starting, loading and saving are not counted)"
    )


def _speed_of(machine: Machine) -> str:
    if machine.gpu:
        return f"{machine.gpus * machine.nodes} x {machine.gpu.flops / 1e12:,.0f} TFLOP/s"
    return f"the {machine.cpu.flops / 1e9:,.0f} GFLOP/s measured here" if machine.cpu else "an unknown speed"
