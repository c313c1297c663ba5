"""The channels of experts: the intermediate features between an expert's up projection and its down projection.

Every family has the same experts behind transformers' interface, whatever their layout:

    hidden [T, H] ──gate_up_proj──► [T, 2W] ──gate──► channels [T, W] ──down_proj──► output [T, H]

A channel is a group of weights: its gate row, its up row, their biases, and its column of the down projection. Which parameters
have channels, and along which axis, is read off: the width is lowered in the configuration of a model without weights, and the
shapes are compared (never looked for by size: gpt-oss is as wide as its hidden state). MLPs whose size hangs on the same key
(shared experts, dense layers) are found that way, too. Which rows of a fused projection make one channel (gate rows before up
rows, or in turns) is seen in the gradient of the family's own gate.

Shape legend: T tokens, E experts, W width (channels), H hidden size.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.load import meta_model
from toolkit.runtime.errors import PollardError

# What all configurations call the width of experts; the second where there is no first, and then it may size other MLPs, too
WIDTH_KEYS = ("moe_intermediate_size", "intermediate_size")
ShapeChanges = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # by parameter: its shape before and after


@dataclass(frozen=True)
class ChannelAxis:
    """Where a parameter has its channels."""

    axis: int
    channel_of_row: torch.Tensor  # int64, as long as the axis: the channel that each row (column, element) belongs to

    def rows(self, channels: torch.Tensor) -> torch.Tensor:
        """The ascending rows of ascending `channels`: [keep] -> [n · keep], [experts, keep] -> [experts, n · keep]."""
        stays = torch.zeros(*channels.shape[:-1], int(self.channel_of_row.max()) + 1, dtype=torch.bool)
        rows = stays.scatter_(-1, channels, True)[..., self.channel_of_row].nonzero()[:, -1]
        return rows.reshape(*channels.shape[:-1], -1)


@dataclass(frozen=True)
class ChannelGroup:
    """Parameters that have channels in common: of a block's experts, each with channels of its own, or of an MLP."""

    name: str  # of the MoE block, or of the MLP's module
    experts: int | None  # None for an MLP
    width: int
    new_width: int
    tensors: Mapping[str, ChannelAxis]  # by the parameter's name in the model
    down: str  # the parameter that reads the channels


def expert_width(model: nn.Module) -> int:
    """W, the channels of every expert. Raises PollardError where blocks differ."""
    widths = {block.name: block_width(block) for block in find_blocks(model)}
    if len(set(widths.values())) > 1:
        names = {width: name for name, width in widths.items()}
        raise PollardError(
            f"Experts are {' and '.join(map(str, sorted(names)))} channels wide ({', '.join(names.values())}): narrowing experts "
            "of several widths is not supported. Leave pruning.width out.",
            code="width.several-widths",
        )
    return next(iter(widths.values()))


def block_width(block: MoEBlock) -> int:
    """The channels of each expert of a block."""
    down: Any = block.experts.down_proj
    return int(down.shape[1 if block.experts.is_transposed else 2])


def narrowed(model: PreTrainedModel, width: int) -> tuple[str, PreTrainedModel]:
    """The key of the configuration that decides how wide experts are, and the model without weights whose experts are that wide.
    Raises PollardError where no key decides it."""
    now = expert_width(model)
    for key in WIDTH_KEYS:
        if getattr(model.config.get_text_config(), key, None) == now:
            config = copy.deepcopy(model.config)
            setattr(config.get_text_config(), key, width)
            narrow = meta_model(config)
            if expert_width(narrow) == width:
                return key, narrow
    raise PollardError(
        f"{model.config.model_type}: none of {' and '.join(WIDTH_KEYS)} in its configuration decides how wide its experts "
        "are, so it cannot be changed. Leave pruning.width out.",
        code="width.unsupported-family",
    )


def channel_groups(model: PreTrainedModel, width: int) -> list[ChannelGroup]:
    """Everything that narrows when the experts of `model` become `width` channels wide: its blocks, and MLPs on the same key.

    `model` may be without weights, and its layers masked. Raises PollardError with the reason where the experts cannot be
    narrowed so.
    """
    now = expert_width(model)
    if not 1 <= width <= now:
        raise PollardError(
            f"Experts of {width} channels cannot be made of experts of {now}: give 1…{now}.", code="width.out-of-range"
        )
    _, narrow = narrowed(model, width if width < now else now // 2)
    before, after = (list(each.named_parameters(remove_duplicate=False)) for each in (model, narrow))
    if len(before) != len(after):
        raise _refused(model, "its number of parameters changes with the width of its experts")
    pairs = {name: (tuple(old.shape), tuple(new.shape)) for (name, old), (_, new) in zip(before, after, strict=True)}
    changed = {name: (old, new) for name, (old, new) in pairs.items() if old != new}
    layouts: dict[type, torch.Tensor] = {}  # blocks of one class are laid out alike
    groups = []
    for block in find_blocks(model):
        if type(block.experts) not in layouts:
            layouts[type(block.experts)] = channel_of_row(block.experts, now)
        groups.append(_block_group(model, block, width, changed, layouts[type(block.experts)]))
    modules: dict[str, list[str]] = {}
    for name in sorted(changed):
        linear = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(linear), nn.Linear):
            raise _refused(model, f"{name} becomes narrower with its experts, and is no linear layer of an MLP")
        modules.setdefault(linear.rpartition(".")[0], []).append(name)
    return [*groups, *(_mlp_group(model, mlp, names, changed, width / now) for mlp, names in modules.items())]


def _block_group(
    model: PreTrainedModel, block: MoEBlock, width: int, changed: ShapeChanges, layout: torch.Tensor
) -> ChannelGroup:
    """Takes the parameters of the block's experts out of `changed` (their shapes before and after). `layout`: the channel of each
    row of the fused projection."""
    now = block_width(block)
    of_block = {name: changed.pop(name) for name in list(changed) if name.startswith(f"{block.experts_name}.")}
    plain = torch.arange(now)
    tensors = {}
    for name, (old, new) in of_block.items():
        axes = [axis for axis, size in enumerate(old) if size != new[axis]]
        rows = next((rows for rows in (layout, plain) if axes and len(rows) == old[axes[0]]), None)
        if len(axes) != 1 or axes[0] == 0 or rows is None:
            raise _refused(model, f"{name} goes from {list(old)} to {list(new)} when its experts become narrower")
        down = name == f"{block.experts_name}.down_proj"
        tensors[name] = ChannelAxis(axes[0], plain if down else rows)
    return ChannelGroup(block.name, block.expert_count, now, width, tensors, f"{block.experts_name}.down_proj")


def _mlp_group(
    model: PreTrainedModel,
    mlp: str,
    names: Sequence[str],
    changed: ShapeChanges,
    share: float,
) -> ChannelGroup:
    tensors, downs = {}, []
    for name in names:
        old, new = changed[name]
        axes = [axis for axis, size in enumerate(old) if size != new[axis]]
        if len(axes) != 1:
            raise _refused(model, f"{name} goes from {list(old)} to {list(new)} when its experts become narrower")
        tensors[name] = ChannelAxis(axes[0], torch.arange(old[axes[0]]))
        downs += [name] * (axes[0] == 1)
    widths = {len(axis.channel_of_row) for axis in tensors.values()}
    if len(downs) != 1 or len(widths) != 1:
        raise _refused(model, f"{mlp} becomes narrower with its experts, and is no MLP of an up and a down projection")
    now = widths.pop()
    new_width = round(now * share)
    if not new_width or abs(new_width - now * share) > 1e-6:
        raise PollardError(
            f"{mlp} hangs on the same key as the experts, and {now} channels cannot become {share:.4g} of that. Give another "
            "pruning.width.",
            code="width.alignment",
        )
    return ChannelGroup(mlp, None, now, new_width, tensors, downs[0])


def _refused(model: PreTrainedModel, reason: str) -> PollardError:
    return PollardError(
        f"The experts of {model.config.model_type} cannot be narrowed: {reason}. Leave pruning.width out.",
        code="width.unsupported-family",
    )


def channel_of_row(experts: nn.Module, width: int) -> torch.Tensor:
    """The channel that each row of the fused projection belongs to, as the family's gate combines them.

    Each bit of a channel's number is one question: which rows have a gradient when only channels with this bit count?
    """
    if not experts.has_gate:
        return torch.arange(width)
    gate: Any = experts._apply_gate
    with torch.enable_grad(), torch.device("cpu"):
        projected = torch.linspace(0.3, 0.9, 2 * width).unsqueeze(0).requires_grad_()
        channels = gate(projected)[0]
        found = torch.zeros(2 * width, dtype=torch.int64)
        for bit in range(max(1, (width - 1).bit_length())):
            has_bit = (torch.arange(width) >> bit & 1).bool()
            with_bit, without = (
                torch.autograd.grad((channels * chosen).sum(), projected, retain_graph=True)[0][0] != 0
                for chosen in (has_bit, ~has_bit)
            )
            if (with_bit & without).any() or not (with_bit | without).all():
                raise PollardError(
                    f"{type(experts).__name__} combines its gate and up projections in a way that does not split into channels. "
                    "Leave pruning.width out.",
                    code="width.unsupported-family",
                )
            found += with_bit.long() << bit
    return found


def expert_channels(experts: nn.Module, hidden_TH: torch.Tensor, expert: int) -> torch.Tensor:
    """a [T, W]: what the down projection of one expert reads, by the definition of transformers' experts interface."""
    return channels_of(experts, expert_projected(experts, hidden_TH, expert))


def expert_projected(experts: nn.Module, hidden_TH: torch.Tensor, expert: int) -> torch.Tensor:
    """[T, 2 W], or [T, W] of experts without a gate: what the channels of one expert are made of."""
    module: Any = experts
    name = "gate_up_proj" if module.has_gate else "up_proj"
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return _linear(module, hidden_TH, getattr(module, name)[expert], bias)


def channels_of(experts: nn.Module, projected: torch.Tensor) -> torch.Tensor:
    """a [T, W] of `expert_projected`."""
    module: Any = experts
    channels: torch.Tensor = module._apply_gate(projected) if module.has_gate else module.act_fn(projected)
    return channels


def expert_output(experts: nn.Module, channels_TW: torch.Tensor, expert: int) -> torch.Tensor:
    """f [T, H]: the unweighted output of one expert, from its channels."""
    module: Any = experts
    bias = module.down_proj_bias[expert] if module.has_bias else None
    output = _linear(module, channels_TW, module.down_proj[expert], bias)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def _linear(experts: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return nn.functional.linear(inputs, weight.T if experts.is_transposed else weight, bias)
