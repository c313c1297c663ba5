"""Where a model is while it answers, in bytes: what toolkit/moe/placement.py will do on the machine that is planned for."""

import math
from dataclasses import dataclass

from toolkit.estimate.machine import USABLE, Machine
from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.training import LIVE
from toolkit.moe.placement import HEADROOM
from toolkit.recipe.schema import Recipe
from toolkit.runtime.zero import partitioned_config

FILLED = 0.9  # of the GPUs' memory: accelerate puts layers there, and the rest on the host; it also keeps room for one layer
LINK = 25e9  # bytes per second between a host and one of its GPUs (PCIe 4.0, 16 lanes)


@dataclass(frozen=True)
class Placed:
    """`gpu`: bytes per GPU (per rank, on a machine without), by part; `host`: bytes of weights per node."""

    gpu: dict[str, int]
    where: str
    parts: int = 1  # GPUs that share one copy, and what it keeps of the text
    copies: int = 1  # that answer at the same time
    host: int = 0
    notes: tuple[str, ...] = ()

    def moving(self, passes: float) -> float:
        """Seconds in which what is on the host crosses to the GPUs in so many forward passes."""
        return passes * self.host / LINK


def placed(recipe: Recipe, machine: Machine, model: ModelNumbers, whole: bool = False) -> Placed:
    """As `model.placement` says. `whole`: for work that needs its model in one piece, which ZeRO-3 cannot give."""
    how: str = recipe.model.placement
    if how == "auto":
        how = _automatic(machine, model.bytes) or "auto"
    if how == "zero3" and whole:
        spread = _spread(machine, model)
        note = "this stage needs its model in one piece: it runs with model.placement=spread only"
        return Placed(spread.gpu, spread.where, spread.parts, spread.copies, spread.host, (*spread.notes, note))
    if how == "copies":
        return Placed({"weights": model.bytes}, f"{machine.ranks} cop{'ies' if machine.ranks > 1 else 'y'}", copies=machine.ranks)
    if how == "spread":
        return _spread(machine, model)
    if how == "zero3":
        return _in_parts(recipe, machine, model)
    return _nowhere(machine, model)


def _automatic(machine: Machine, size: int) -> str | None:
    """What `auto` becomes; None where it stops the run, for there is no room anywhere."""
    wanted = HEADROOM * size
    if not machine.gpus or wanted <= machine.gpu_memory:
        return "copies"
    if wanted <= machine.gpus * machine.gpu_memory:
        return "spread"
    return "zero3" if wanted <= machine.nodes * machine.gpus * machine.gpu_memory else None


def _spread(machine: Machine, model: ModelNumbers) -> Placed:
    if not machine.gpus:
        return Placed({}, "one copy", host=model.bytes)
    room = FILLED * machine.gpus * machine.gpu_memory - model.largest_layer * model.weight_bytes
    on_gpus = max(0, min(model.bytes, int(room)))
    host = model.bytes - on_gpus
    where = f"one copy over {machine.gpus} GPU{'s' * (machine.gpus > 1)}" + " and the host" * bool(host)
    note = f"{host / 2**30:,.1f} GiB of its weights are on the host, and cross to a GPU ({LINK / 1e9:.0f} GB/s) at every pass"
    weights = {"weights": -(-on_gpus // machine.gpus)}
    return Placed(weights, where, parts=machine.gpus, host=host, notes=(note,) * bool(host))


def _in_parts(recipe: Recipe, machine: Machine, model: ModelNumbers) -> Placed:
    """Every rank holds a part of each layer (or its host does), and the layers at work whole."""
    settings = partitioned_config(recipe.finetuning.zero)
    away = (settings.get("offload_param") or {}).get("device", "none") != "none"
    live = max(int(settings.get("stage3_max_live_parameters", LIVE)), model.largest_layer)
    gathered = model.weight_bytes * min(model.parameters, live)
    part = -(-model.bytes // machine.ranks)
    note = "in parts (ZeRO-3): the time does not count that every rank fetches every layer from the others at every pass"
    return Placed(
        {"weights": 0 if away else part, "gathered layers": gathered}, f"in parts over {machine.ranks} ranks",
        copies=machine.ranks, host=part * machine.ranks_per_node if away else 0, notes=(note,),
    )  # fmt: skip


def _nowhere(machine: Machine, model: ModelNumbers) -> Placed:
    """`auto` stops the run there; as large as it would be over all GPUs."""
    weights = -(-model.bytes // machine.ranks)
    free = math.ceil((HEADROOM - 1) * weights) if weights <= USABLE * machine.gpu_memory else 0
    note = f"model.placement=auto finds no room for the weights times {HEADROOM} on all GPUs together, and stops the run"
    parts = {"weights": weights} | ({"kept free": free} if free else {})
    return Placed(parts, f"one copy over {machine.ranks} GPUs" if machine.ranks > 1 else "1 copy", machine.gpus, notes=(note,))
