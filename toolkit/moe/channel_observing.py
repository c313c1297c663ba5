"""Observe channels while a model runs, and their gradients in a backward pass.

Forward, the channels of experts come from what observe.py shows and `expert_channels`; an MLP that is narrowed with them shows
its own to hooks on its linear layers. Backward, experts run by an implementation of their own, expert by expert, and gradients go
through activations only: no parameter has one, and the first channels of the model are where the graph begins.

Shape legend: T tokens (batch and sequence flattened), R of them, K experts per token, W width (channels).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks
from toolkit.moe.channels import ChannelGroup, expert_channels, expert_output

IMPLEMENTATION = "pollard_channel_gradients"


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


class ChannelGradient(NamedTuple):
    """The channels of one expert (or MLP) for one batch, and the gradient of the loss."""

    group: ChannelGroup
    expert: int | None
    tokens: torch.Tensor | None  # [R], which of the batch's; None: all
    channels_RW: torch.Tensor
    gradient_RW: torch.Tensor


GradientObserver = Callable[[ChannelGradient], None]


@contextmanager
def observing_gradients(model: PreTrainedModel, groups: Iterable[ChannelGroup], observer: GradientObserver) -> Iterator[None]:
    """Calls `observer` in every backward pass inside the context, for every expert of `groups` that a token has chosen and for
    their MLPs. Parameters get no gradients. A model without experts will do, where `groups` are MLPs."""
    by_name = {group.name: group for group in groups}
    differs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    mlps = [group for group in by_name.values() if group.experts is None]
    before = model.config._experts_implementation
    handles = []
    try:
        for parameter, _ in differs:
            parameter.requires_grad_(False)
        for group in mlps:
            linear = model.get_submodule(group.down.rpartition(".")[0])
            handles.append(linear.register_forward_pre_hook(partial(_differentiate_inputs, observer, group)))
        if len(mlps) < len(by_name):
            of_block = {id(block.experts): by_name[block.name] for block in find_blocks(model)}
            ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, partial(_differentiable_experts, observer, of_block))
            model.set_experts_implementation(IMPLEMENTATION)
        yield
    finally:
        if len(mlps) < len(by_name):
            model.set_experts_implementation(before)
        for handle in handles:
            handle.remove()
        for parameter, differed in differs:
            parameter.requires_grad_(differed)


def _differentiable_experts(
    observer: GradientObserver,
    of_block: dict[int, ChannelGroup],
    experts: nn.Module,
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    gate_TK: torch.Tensor,
) -> torch.Tensor:
    group = of_block[id(experts)]
    assert group.experts is not None
    out_TH = torch.zeros_like(hidden_TH)
    for expert, tokens, places in tokens_by_expert(index_TK, index_TK < group.experts, group.experts):
        channels_RW = _in_graph(expert_channels(experts, hidden_TH[tokens], expert))
        channels_RW.register_hook(partial(_report, observer, group, expert, tokens, channels_RW.detach()))
        weighted_RH = expert_output(experts, channels_RW, expert) * gate_TK[tokens, places].unsqueeze(1)
        out_TH = out_TH.index_add(0, tokens, weighted_RH.to(out_TH.dtype))
    return out_TH


def _differentiate_inputs(
    observer: GradientObserver, group: ChannelGroup, linear: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    channels = _in_graph(args[0])
    channels.register_hook(partial(_report, observer, group, None, None, channels.detach()))
    return channels, *args[1:]


def _in_graph(channels: torch.Tensor) -> torch.Tensor:
    return channels if channels.requires_grad else channels.detach().requires_grad_()


def _report(
    observer: GradientObserver,
    group: ChannelGroup,
    expert: int | None,
    tokens: torch.Tensor | None,
    channels: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    rows = (-1, channels.shape[-1])
    observer(ChannelGradient(group, expert, tokens, channels.reshape(rows), gradient.reshape(rows)))
