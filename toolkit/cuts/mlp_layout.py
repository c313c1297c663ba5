"""What the linear layers of an MLP do, told by what they compute: their names differ from family to family (gate_proj, w1, …).

    experts   hidden ─► fused projection, two rows for each channel ─► the family's gate ─► channels ─► down projection
    an MLP    hidden ─► two linear layers, or the halves of one     ─► its activation    ─► channels ─► down projection

A small copy of the MLP gets random weights in every order; the order in which it answers as the experts' own gate does is right.

Shape legend: T tokens, H hidden size, W width of an expert or an MLP.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import nn

from toolkit.moe.channels import channel_of_row

SMALL_HIDDEN, SMALL_WIDTH, SMALL_TOKENS = 5, 3, 7


class Rows(NamedTuple):
    """Rows of a linear layer of an MLP: all of them, or one of two halves."""

    linear: str
    part: int = 0
    parts: int = 1


class MlpWeights(NamedTuple):
    """The weights of an MLP or of one expert."""

    first: torch.Tensor  # [W, H]
    second: torch.Tensor  # [W, H]
    down: torch.Tensor  # [H, W]


class MlpLayout(NamedTuple):
    """Which linear layers of an MLP do what an expert's fused projection does. An expert's channel has two rows there, a `first`
    and a `second`; which of them is the gate is known to the family's own code alone."""

    first: Rows
    second: Rows
    down: str


def combined(experts: Any, first_TW: torch.Tensor, second_TW: torch.Tensor) -> torch.Tensor:
    """The channels [T, W] that the experts' own gate makes of the two rows of each."""
    order = rows_of_channels(experts, first_TW.shape[1])
    projected = first_TW.new_empty(len(first_TW), 2 * first_TW.shape[1])
    projected[:, order[0]], projected[:, order[1]] = first_TW, second_TW
    return experts._apply_gate(projected)


def rows_of_channels(experts: nn.Module, width: int) -> torch.Tensor:
    """[2, W]: the first and the second row of each channel in the fused projection."""
    return channel_of_row(experts, width).argsort(stable=True).view(width, 2).T


def mlp_layout(mlp: nn.Module, experts: nn.Module) -> MlpLayout | None:
    """What the linear layers of `mlp` do; None where it does not compute what `experts` do. Either may be without weights."""
    linears = {name: child for name, child in mlp.named_children() if isinstance(child, nn.Linear)}
    if any(linear.bias is not None for linear in linears.values()):
        return None
    generator = torch.Generator().manual_seed(0)
    sizes = {"into": (SMALL_WIDTH, SMALL_HIDDEN), "both": (2 * SMALL_WIDTH, SMALL_HIDDEN), "out": (SMALL_HIDDEN, SMALL_WIDTH)}
    weights = {name: [torch.randn(size, generator=generator) for _ in range(2)] for name, size in sizes.items()}
    hidden_TH = 8 * torch.randn(SMALL_TOKENS, SMALL_HIDDEN, generator=generator)  # large enough for a gate that clamps
    first, second, down = weights["into"][0], weights["into"][1], weights["out"][0]
    with torch.no_grad():
        expected = combined(experts, hidden_TH @ first.T, hidden_TH @ second.T) @ down.T
        for layout in _possible_layouts(list(linears)):
            small = {layout.down: down}
            if layout.first.parts == 2:
                small[layout.first.linear] = torch.cat([first, second] if layout.first.part == 0 else [second, first])
            else:
                small |= {layout.first.linear: first, layout.second.linear: second}
            found = _answer(mlp, small, hidden_TH)
            if found is not None and found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
                return layout
    return None


def mlp_weights(mlp: nn.Module, layout: MlpLayout) -> MlpWeights:
    """Those of an MLP of that layout."""

    def rows(of: Rows) -> torch.Tensor:
        weight: Any = mlp.get_submodule(of.linear).weight
        return weight.data.chunk(of.parts)[of.part]

    down: Any = mlp.get_submodule(layout.down).weight
    return MlpWeights(rows(layout.first), rows(layout.second), down.data)


def mlp_tensors(path: str, layout: MlpLayout, weights: MlpWeights) -> dict[str, torch.Tensor]:
    """The tensors of the MLP `path` of that layout, by name."""
    tensors = {layout.down: weights.down}
    if layout.first.parts == 2:
        both = [weights.first, weights.second]
        tensors[layout.first.linear] = torch.cat(both if layout.first.part == 0 else both[::-1])
    else:
        tensors |= {layout.first.linear: weights.first, layout.second.linear: weights.second}
    return {f"{path}.{name}.weight": tensor for name, tensor in tensors.items()}


def _possible_layouts(linears: list[str]) -> Iterator[MlpLayout]:
    if len(linears) == 3:
        for first, second, down in permutations(linears):
            yield MlpLayout(Rows(first), Rows(second), down)
    elif len(linears) == 2:
        for both, down in permutations(linears):
            for part in range(2):
                yield MlpLayout(Rows(both, part, 2), Rows(both, 1 - part, 2), down)


def _answer(mlp: nn.Module, weights: Mapping[str, torch.Tensor], hidden_TH: torch.Tensor) -> torch.Tensor | None:
    """The output of `mlp` with these linear layers in place of its own; None where they do not fit."""
    probe = copy.copy(mlp)
    probe._modules = dict(mlp._modules)
    for name, weight in weights.items():
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        probe._modules[name] = linear
    try:
        return probe(hidden_TH[None])[0]
    except (RuntimeError, TypeError, ValueError):
        return None
