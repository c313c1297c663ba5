"""What writes into the residual stream by a linear map: the experts' down projections, and linear layers such as a shared
expert's or a dense MLP's.

    stream after the layer = everything else + gain · Σ_units channels_unit @ weight_unit

A unit is one expert, or the linear layer. Whether a writer has such a path, and its gain (Granite scales what its blocks add),
is found by running the layer once more with the writer's output doubled: only where the layer's output moves by one constant
times that output is the path linear (a norm behind the block, or a block behind the attention, is none).

Shape legend: T tokens of a batch, R of them, K experts per token, W width (channels of a unit), V numbers that they are made of
(gate and up: 2 W), H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import MoEBlock
from toolkit.moe.channels import block_width, channel_of_row, channels_of, expert_channels, expert_projected
from toolkit.runtime.errors import PollardError

IMPLEMENTATION = "pollard_residual_writers"
SMALLEST_GAIN = 1e-2  # below, a norm behind the writer hides that it was doubled
AGREEING = 0.9  # of the numbers that rounding leaves comparable must move by the same constant


class WriterInputs(NamedTuple):
    """What a writer was called with, for R tokens: experts hidden states [R, H] and the routing [R, K], a linear layer its
    channels [R, W]. `scale_R` multiplies every token's channels: what a token weighs in a sum of squares, its square root."""

    hidden: torch.Tensor
    index_RK: torch.Tensor | None = None
    gate_RK: torch.Tensor | None = None
    scale_R: torch.Tensor | None = None

    def scaled(self, channels: torch.Tensor, tokens: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """`channels` [R', …] of `tokens`."""
        if self.scale_R is None:
            return channels
        return channels * self.scale_R[tokens].view(-1, *[1] * (channels.ndim - 1))

    def rows(self, rows: torch.Tensor) -> "WriterInputs":
        """Those of some of the tokens, copied."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "WriterInputs":
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "WriterInputs":
        index_RK, gate_RK, scale_R = (None if tensor is None else function(tensor) for tensor in self[1:])
        return WriterInputs(function(self.hidden), index_RK, gate_RK, scale_R)


class WriterCall(NamedTuple):
    """One call, of a whole batch: T tokens."""

    inputs: WriterInputs
    output_TH: torch.Tensor


class UnitChannels(NamedTuple):
    """The channels of one unit, weighted by its gates, of the tokens that it has any for."""

    tokens: torch.Tensor  # [R'], which of the R
    channels_RW: torch.Tensor


class UnitSlopes(NamedTuple):
    """How the weighted channels of a unit change with what its projection gives: of V numbers each moves one channel."""

    tokens: torch.Tensor  # [R'], which of the R
    hidden_RH: torch.Tensor  # what the projection reads
    slope_RV: torch.Tensor


class ResidualWriter(ABC):
    """`name`: of the weight in the model. `units` of `width` channels each. `projection_name`: of the weight that makes the
    channels, where it is known."""

    name: str
    units: int
    width: int
    projection_name: str | None = None

    @property
    def names(self) -> list[str]:
        """Of all weights that refit may change."""
        return [self.name, *([self.projection_name] if self.projection_name else [])]

    @abstractmethod
    def channels(self, inputs: WriterInputs, unit: int) -> UnitChannels:
        """What the unit's weight is multiplied with."""

    @abstractmethod
    def weight(self, unit: int) -> torch.Tensor:
        """[W, H], a view of the model's parameter: to be changed in place."""


class ExpertsWriter(ResidualWriter):
    """The experts of one MoE block.

    Raises PollardError for experts that put a norm behind their down projection.
    """

    def __init__(self, block: MoEBlock) -> None:
        self.block, self.experts = block, block.experts
        if getattr(block.experts, "has_post_expert_norm", False):
            raise PollardError(
                f"{block.name}: each expert's output is normalised behind its down projection, so what the block adds is not "
                "linear in that weight. Leave pruning.refit out.",
                code="refit.no-linear-path",
            )
        self.name = f"{block.experts_name}.down_proj"
        self.projection_name = f"{block.experts_name}.{self._projection}"
        self.units, self.width = block.expert_count, block_width(block)

    @property
    def _projection(self) -> str:
        return "gate_up_proj" if self.experts.has_gate else "up_proj"

    @property
    def numbers(self) -> int:
        """V."""
        return self.width * (2 if self.experts.has_gate else 1)

    @cached_property
    def channel_of_row(self) -> torch.Tensor:
        """[V], of what the projection gives: the channel that each number moves."""
        return channel_of_row(self.experts, self.width)

    def channels(self, inputs: WriterInputs, unit: int) -> UnitChannels:
        tokens, gate_R = self._routed(inputs, unit)
        return UnitChannels(tokens, expert_channels(self.experts, inputs.hidden[tokens], unit) * gate_R.unsqueeze(1))

    def slopes(self, inputs: WriterInputs, unit: int, dtype: torch.dtype) -> UnitSlopes:
        """In `dtype`, by the family's own gate."""
        tokens, gate_R = self._routed(inputs, unit)
        hidden_RH = inputs.hidden[tokens]
        with torch.enable_grad():
            projected_RV = expert_projected(self.experts, hidden_RH, unit).detach().to(dtype).requires_grad_()
            channels_RW = channels_of(self.experts, projected_RV)
            (slope_RV,) = torch.autograd.grad(channels_RW.sum(), projected_RV)
        return UnitSlopes(tokens, hidden_RH.to(dtype), slope_RV * gate_R.unsqueeze(1).to(dtype))

    def _routed(self, inputs: WriterInputs, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that the expert gets, and their gate weights, scaled."""
        assert inputs.index_RK is not None and inputs.gate_RK is not None
        tokens, places = ((inputs.index_RK == unit) & (inputs.gate_RK != 0)).nonzero(as_tuple=True)
        return tokens, inputs.scaled(inputs.gate_RK[tokens, places], tokens)

    def weight(self, unit: int) -> torch.Tensor:
        down: Any = self.experts.down_proj
        return down.data[unit] if self.experts.is_transposed else down.data[unit].T

    def projection(self, unit: int) -> torch.Tensor:
        """[V, H], a view of the model's parameter: to be changed in place."""
        fused: Any = getattr(self.experts, self._projection)
        return fused.data[unit].T if self.experts.is_transposed else fused.data[unit]


class LinearWriter(ResidualWriter):
    """A linear layer; its bias stays as it is."""

    def __init__(self, name: str, linear: nn.Linear) -> None:
        self.linear, self.name = linear, f"{name}.weight"
        self.units, self.width = 1, linear.in_features

    def channels(self, inputs: WriterInputs, unit: int) -> UnitChannels:
        return UnitChannels(torch.arange(len(inputs.hidden), device=inputs.hidden.device), inputs.scaled(inputs.hidden))

    def weight(self, unit: int) -> torch.Tensor:
        return self.linear.weight.data.T


class WriterCalls:
    """The calls of a forward pass by the writer's name; `scale` multiplies the outputs of one."""

    def __init__(self) -> None:
        self.calls: dict[str, list[WriterCall]] = {}
        self.scale: dict[str, float] = {}

    def add(self, name: str, call: WriterCall) -> torch.Tensor:
        self.calls.setdefault(name, []).append(call)
        return call.output_TH * self.scale[name] if name in self.scale else call.output_TH


@contextmanager
def writer_calls(model: PreTrainedModel, writers: Sequence[ResidualWriter]) -> Iterator[WriterCalls]:
    """Records every call of `writers` inside the context; the model computes what it always does."""
    recorded = WriterCalls()
    before = model.config._experts_implementation
    experts = {id(writer.experts): writer.name for writer in writers if isinstance(writer, ExpertsWriter)}
    handles = []
    try:
        if experts:
            ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, partial(_recorded_experts, recorded, experts, before))
            model.set_experts_implementation(IMPLEMENTATION)
        for writer in writers:
            if isinstance(writer, LinearWriter):
                handles.append(writer.linear.register_forward_hook(partial(_record_linear, recorded, writer.name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
        if experts:
            model.set_experts_implementation(before)


def _recorded_experts(
    recorded: WriterCalls,
    names: dict[int, str],
    before: str,
    experts: nn.Module,
    hidden_TH: torch.Tensor,
    index_TK: torch.Tensor,
    gate_TK: torch.Tensor,
) -> torch.Tensor:
    run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)
    output_TH = run(experts, hidden_TH, index_TK, gate_TK)
    name = names.get(id(experts))
    return output_TH if name is None else recorded.add(name, WriterCall(WriterInputs(hidden_TH, index_TK, gate_TK), output_TH))


def _record_linear(
    recorded: WriterCalls, name: str, linear: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    call = WriterCall(WriterInputs(args[0].flatten(0, -2)), output.flatten(0, -2))
    return recorded.add(name, call).view(output.shape)


def writers_in(layer_name: str, layer: nn.Module, blocks: Sequence[MoEBlock], hidden_size: int) -> list[ResidualWriter]:
    """What in a decoder layer may write into its residual stream: `blocks`, its MoE blocks, first. Mamba's fused kernels read
    their weights directly, so its linear layers are none."""
    apart = [module for block in blocks for module in (block.experts, block.router)]
    hidden = {id(module) for each in apart for module in each.modules()}
    modules = dict(layer.named_modules())
    linears = [
        LinearWriter(f"{layer_name}.{name}", module)
        for name, module in modules.items()
        if type(module) is nn.Linear
        and id(module) not in hidden
        and module.out_features == hidden_size
        and not hasattr(modules[name.rpartition(".")[0]], "D")
    ]
    return [*map(ExpertsWriter, blocks), *linears]


def residual_gain(
    writer: ResidualWriter, calls: WriterCalls, run: Callable[[], torch.Tensor], output_TH: torch.Tensor
) -> float | None:
    """The constant m by which the layer's output moves when the writer's does; None where there is no such constant.

    `run` computes the layer's output [T, H] inside the context of `calls`, which has recorded the run that gave `output_TH`.
    """
    mine = calls.calls.get(writer.name, [])
    if len(mine) != 1 or mine[0].output_TH.shape != output_TH.shape:
        return None  # not called once, or not with the batch's tokens
    own_TH, recorded = mine[0].output_TH.float(), dict(calls.calls)
    calls.scale[writer.name], calls.calls = 2.0, {}
    try:
        moved_TH = run().float() - output_TH.float()
    finally:
        del calls.scale[writer.name]
        calls.calls = recorded
    # Where the stream is large, rounding hides what the writer adds
    rounding = torch.finfo(output_TH.dtype).eps * output_TH.abs().float()
    told = own_TH.abs() > 64 * rounding
    if not told.any():
        return None
    gain = float((moved_TH / own_TH)[told].median())
    agrees = (moved_TH - gain * own_TH).abs() <= 1e-3 * own_TH.abs() + 4 * rounding
    return gain if abs(gain) >= SMALLEST_GAIN and agrees[told].float().mean() >= AGREEING else None
