"""The tensors of the upcycled model, made of a dense one's.

Shape legend: E experts, H hidden size, W width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.cuts.mlp_layout import MlpLayout, MlpWeights, mlp_tensors, mlp_weights, rows_of_channels
from toolkit.cuts.upcycling.forms import Draws, Form


class Place(NamedTuple):
    """Where a feed-forward layer of the dense model goes; all are paths."""

    block: str  # the MoE block, and in the dense model the feed-forward layer
    experts: str
    router: str
    layout: MlpLayout  # of the dense layer
    shared: str | None = None  # the shared expert, in families that have one,
    shared_gate: str | None = None  # the linear layer whose sigmoid weighs it,
    shared_layout: MlpLayout | None = None


def upcycled_tensors(
    dense: PreTrainedModel, model: PreTrainedModel, places: tuple[Place, ...], form: Form, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Those of `model` (which may be without weights) whose names begin with `prefix`, by name; of `dense` these are loaded."""
    ours, replaced = dense.state_dict(), tuple(f"{place.block}." for place in places)
    found = {name: ours[name] for name in model.state_dict() if name.startswith(prefix) and not name.startswith(replaced)}
    for place in places:
        if place.block.startswith(prefix):
            found |= _block_tensors(dense, model, place, form)
    return found


def _block_tensors(dense: PreTrainedModel, model: PreTrainedModel, place: Place, form: Form) -> dict[str, torch.Tensor]:
    config: Any = model.config
    layer, draws = mlp_weights(dense.get_submodule(place.block), place.layout), Draws(form.seed, place.block)
    dtype, device = layer.down.dtype, layer.down.device
    router = draws.normal((form.experts, layer.down.shape[0]), config.initializer_range, "router").to(device, dtype)
    found = _fused(place.experts, model.get_submodule(place.experts), form.experts, form.routed(layer, draws))
    found[f"{place.router}.weight"] = router
    if place.shared and place.shared_layout:
        found |= mlp_tensors(place.shared, place.shared_layout, form.shared(layer, draws))
        found[f"{place.shared_gate}.weight"] = layer.down.new_zeros(1, layer.down.shape[0])
    return found


def _fused(path: str, experts: nn.Module, count: int, parts: Iterator[MlpWeights]) -> dict[str, torch.Tensor]:
    """The experts' two parameters, filled expert after expert."""
    fused_EWH = down_EHW = torch.empty(0)
    for number, part in enumerate(parts):
        width, size = part.first.shape
        if number == 0:
            order = rows_of_channels(experts, width)
            fused_EWH, down_EHW = part.first.new_empty(count, 2 * width, size), part.down.new_empty(count, size, width)
        fused_EWH[number, order[0]], fused_EWH[number, order[1]] = part.first, part.second
        down_EHW[number] = part.down
    return {f"{path}.gate_up_proj": fused_EWH, f"{path}.down_proj": down_EHW}
