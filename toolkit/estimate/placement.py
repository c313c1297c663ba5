"""Where a model lies while it answers, in bytes: what toolkit/moe/placement.py will do on the machine that is planned for."""

import math
from dataclasses import dataclass, replace

from toolkit.estimate.machine import USABLE, Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.training_memory import LIVE_PARAMETERS
from toolkit.moe.placement import HEADROOM
from toolkit.runtime.zero import partitioned_config

# The share of the GPUs' memory that accelerate fills with layers before it puts the rest on the host; it also keeps room for one
# layer
SPREAD_SHARE = 0.9
LINK_BANDWIDTH = 25e9  # bytes per second between a host and one of its GPUs (PCIe 4.0, 16 lanes)


@dataclass(frozen=True)
class ModelPlacement:
    """How a model lies on a machine."""

    model: ModelSize
    gpu: dict[str, int]  # part -> bytes per GPU; on a machine without GPUs, per rank
    description: str  # "8 copies"
    parts: int = 1  # GPUs that share one copy and its cache
    copies: int = 1  # copies that answer at the same time
    host: int = 0  # bytes of weights per node
    notes: tuple[str, ...] = ()

    def transfer_seconds(self, passes: float) -> float:
        """Seconds in which the weights on the host cross to the GPUs, in `passes` forward passes."""
        return passes * self.host / LINK_BANDWIDTH


def place_model(model: ModelSize, machine: Machine, placement: str, zero: int | str, whole: bool = False) -> ModelPlacement:
    """The placement that `model.placement` (and, of `zero3`, `finetuning.zero`) leads to.

    `whole`: the work needs its model in one piece, which ZeRO-3 cannot give; the model is spread instead, with a note.
    """
    if placement == "auto":
        placement = _automatic(machine, model.bytes) or "auto"
    if placement == "zero3" and whole:
        spread = _spread(machine, model)
        note = "this stage needs its model in one piece: it runs with model.placement=spread only"
        return replace(spread, notes=(*spread.notes, note))
    if placement == "copies":
        copies = f"{machine.ranks} cop{'ies' if machine.ranks > 1 else 'y'}"
        return ModelPlacement(model, {"weights": model.bytes}, copies, copies=machine.ranks)
    if placement == "spread":
        return _spread(machine, model)
    if placement == "zero3":
        return _partitioned(zero, machine, model)
    return _too_large(machine, model)


def _automatic(machine: Machine, size: int) -> str | None:
    """What `auto` becomes; None where it stops the run, for there is no room anywhere."""
    wanted = HEADROOM * size
    if not machine.gpus or wanted <= machine.gpu_memory:
        return "copies"
    if wanted <= machine.gpus * machine.gpu_memory:
        return "spread"
    return "zero3" if wanted <= machine.nodes * machine.gpus * machine.gpu_memory else None


def _spread(machine: Machine, model: ModelSize) -> ModelPlacement:
    """One copy, its layers over the GPUs of a node, the rest on the host."""
    if not machine.gpus:
        return ModelPlacement(model, {}, "one copy", host=model.bytes)
    room = SPREAD_SHARE * machine.gpus * machine.gpu_memory - model.largest_layer * model.weight_bytes
    on_gpus = max(0, min(model.bytes, int(room)))
    host = model.bytes - on_gpus
    description = f"one copy over {machine.gpus} GPU{'s' * (machine.gpus > 1)}" + " and the host" * bool(host)
    note = (
        f"{host / 2**30:,.1f} GiB of its weights are on the host, and cross to a GPU ({LINK_BANDWIDTH / 1e9:.0f} GB/s) at every "
        "pass"
    )
    weights = {"weights": -(-on_gpus // machine.gpus)}
    return ModelPlacement(model, weights, description, parts=machine.gpus, host=host, notes=(note,) * bool(host))


def _partitioned(zero: int | str, machine: Machine, model: ModelSize) -> ModelPlacement:
    """Every rank (or its host) holds a part of each layer, and whole those that are at work."""
    settings = partitioned_config(zero)
    offloaded = (settings.get("offload_param") or {}).get("device", "none") != "none"
    live = max(int(settings.get("stage3_max_live_parameters", LIVE_PARAMETERS)), model.largest_layer)
    gathered = model.weight_bytes * min(model.parameters, live)
    part = -(-model.bytes // machine.ranks)
    note = "in parts (ZeRO-3): the time does not count that every rank fetches every layer from the others at every pass"
    return ModelPlacement(
        model, {"weights": 0 if offloaded else part, "gathered layers": gathered}, f"in parts over {machine.ranks} ranks",
        copies=machine.ranks, host=part * machine.ranks_per_node if offloaded else 0, notes=(note,),
    )  # fmt: skip


def _too_large(machine: Machine, model: ModelSize) -> ModelPlacement:
    """`auto` stops the run there; the size is what it would be over all GPUs."""
    weights = -(-model.bytes // machine.ranks)
    free = math.ceil((HEADROOM - 1) * weights) if weights <= USABLE * machine.gpu_memory else 0
    note = f"model.placement=auto finds no room for the weights times {HEADROOM} on all GPUs together, and stops the run"
    parts = {"weights": weights} | ({"kept free": free} if free else {})
    description = f"one copy over {machine.ranks} GPUs" if machine.ranks > 1 else "1 copy"
    return ModelPlacement(model, parts, description, machine.gpus, notes=(note,))
