"""A model's list of decoder layers with some of them left out: for good, or by reference with the original's names.

model.layers            0  1  2  3      modules named model.layers.0 … model.layers.3
dropped (`drop_layers`) 0  1  2         the layers 0, 2 and 3, renumbered
masked (`NumberedLayers`) 0  2  3       the same three, still named model.layers.0, .2 and .3, in positions 0, 1 and 2
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any, overload

from torch import nn


class NumberedLayers(nn.ModuleList):
    """Layers under numbers of their own, in ascending order: modules, parameters and blocks are named by them, while the model
    counts and indexes positions."""

    def __init__(self, layers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        for number in sorted(layers):
            self.add_module(str(number), layers[number])

    @overload
    def __getitem__(self, position: slice) -> "NumberedLayers": ...
    @overload
    def __getitem__(self, position: int) -> nn.Module: ...
    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return NumberedLayers({int(number): layer for number, layer in list(self._modules.items())[position] if layer})
        return list(self._modules.values())[index(position)]


def set_list(model: nn.Module, path: str, layers: nn.ModuleList) -> None:
    """Puts `layers` in the place of the list at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layers)


def drop_layers(model: nn.Module, path: str, kept: Sequence[int]) -> None:
    """Leaves the `kept` layers of the list at `path`, renumbered 0, 1, …"""
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    set_list(model, path, nn.ModuleList([layers[number] for number in kept]))


@contextmanager
def only_layers(model: nn.Module, path: str, kept: Sequence[int]) -> Iterator[None]:
    """Inside the context the list at `path` has the `kept` layers only, under the names that they have."""
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    set_list(model, path, NumberedLayers({number: layers[number] for number in kept}))
    try:
        yield
    finally:
        set_list(model, path, layers)
