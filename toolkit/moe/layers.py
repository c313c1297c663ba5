"""Run a model's decoder layers one at a time, each as the model itself calls it.

Shape legend: B sequences, S positions, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.errors import PollardError
from toolkit.moe.blocks import MoEBlock


class LayerCalls:
    """The decoder layers, and per batch how the model called them."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.inputs_BSH: list[torch.Tensor] = []  # per batch: what the first layer got
        self.calls: list[dict[int, tuple[tuple[Any, ...], Mapping[str, Any]]]] = []  # per batch and layer: other arguments

    def record(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if number == 0:
            self.inputs_BSH.append(hidden)
            self.calls.append({})
        self.calls[-1][number] = (args[1:], kwargs)

    def run(self, number: int, batch: int, hidden_BSH: torch.Tensor) -> torch.Tensor:
        """The output [B, S, H] of layer `number` for `hidden_BSH` in the place of that batch's own input."""
        args, kwargs = self.calls[batch][number]
        out = self.layers[number](hidden_BSH, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def number_of(self, block: MoEBlock) -> int:
        inside = {id(module): number for number, layer in enumerate(self.layers) for module in layer.modules()}
        return inside[id(block.module)]


@contextmanager
def recording_layers(model: PreTrainedModel, blocks: Sequence[MoEBlock]) -> Iterator[LayerCalls]:
    """Notes, for every forward pass inside the context, how each decoder layer was called (masks and positions are shared
    between layers, so this is little). Raises PollardError where the blocks are not in one list of layers."""
    modules = dict(model.named_modules())
    lists = set()
    for block in blocks:
        parts = block.name.split(".")
        paths = [".".join(parts[:n]) for n in range(1, len(parts))]
        lists |= {next((path for path in paths if isinstance(modules[path], nn.ModuleList)), "")}
    if len(lists) != 1 or "" in lists:
        raise PollardError("This model's decoder layers do not stand in one list: use `pruning.mode: layerwise`.")
    layers = modules[lists.pop()]
    assert isinstance(layers, nn.ModuleList)
    calls = LayerCalls(layers)

    def hook(number: int) -> Any:
        return lambda module, args, kwargs: calls.record(number, args, kwargs)

    handles = [layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
