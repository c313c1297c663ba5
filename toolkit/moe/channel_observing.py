"""Observe channels while a model runs: those of the MLPs that are narrowed with the experts, and the tokens of each expert.

The channels of experts come from what observe.py shows and `expert_channels`; an MLP shows its own to hooks on its linear layers.

Shape legend: T tokens (batch and sequence flattened), K experts per token, W width (channels).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from toolkit.moe.channels import ChannelGroup


class LinearCall(NamedTuple):
    """A linear layer of an MLP has been called with one batch; rows of padding are included."""

    group: ChannelGroup
    parameter: str  # the name of its weight in the model
    weight: torch.Tensor
    inputs_TX: torch.Tensor  # of the down projection: the channels [T, W]

    @property
    def is_down(self) -> bool:
        return self.parameter == self.group.down


LinearObserver = Callable[[LinearCall], None]


@contextmanager
def observing_linears(model: nn.Module, mlps: Iterable[ChannelGroup], observer: LinearObserver) -> Iterator[None]:
    """Calls `observer` before every call of a linear layer of `mlps` inside the context: its weights are there then, also where
    they are streamed or partitioned."""
    handles = []
    try:
        for group in mlps:
            for parameter in group.tensors:
                layer, _, kind = parameter.rpartition(".")
                if kind == "weight":
                    hook = partial(_call_observer, observer, group, parameter)
                    handles.append(model.get_submodule(layer).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call_observer(
    observer: LinearObserver, group: ChannelGroup, parameter: str, layer: nn.Module, args: tuple[Any, ...]
) -> None:
    weight: Any = layer.weight
    observer(LinearCall(group, parameter, weight, args[0].reshape(-1, args[0].shape[-1])))


class ExpertTokens(NamedTuple):
    """The tokens of one expert [R], and at which of a token's K places they chose it."""

    expert: int
    tokens: torch.Tensor
    places: torch.Tensor


def tokens_by_expert(index_TK: torch.Tensor, counted_TK: torch.Tensor, experts: int) -> Iterator[ExpertTokens]:
    """For every expert that some token has chosen, among the choices that are `counted`."""
    tokens, places = counted_TK.nonzero(as_tuple=True)
    chosen = index_TK[tokens, places]
    order, counts = chosen.argsort(stable=True), chosen.bincount(minlength=experts).tolist()
    for expert, mine in enumerate(order.split(counts)):
        if len(mine):
            yield ExpertTokens(expert, tokens[mine], places[mine])
