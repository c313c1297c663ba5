"""Narrower experts: all experts of a model get the same new width (one key of the configuration), each its own channels.

    model.layers.3.block_sparse_moe.experts.7.w1.weight [W, H]   gate and up projection of one expert: rows stay
    model.layers.3.block_sparse_moe.experts.7.w2.weight [H, W]   its down projection: columns stay
    model.layers.3.mlp.experts.gate_up_proj [E, 2W, H]           of all experts: in each expert's part other rows
    model.layers.3.mlp.shared_experts.up_proj.weight [W, H]      of an MLP that hangs on the same key: rows stay

A channel that is gone is one whose column of the down projection is zero: so it is masked. (LLM-Pruner, arXiv 2305.11627, for
experts.) Shape legend: E experts, W width (channels), H hidden size.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from toolkit.cuts.cut import AffectedTensor, ConfigFile, Cut, Indices, PlanView, Shape, UnknownLayoutError
from toolkit.cuts.experts import ExpertsCut
from toolkit.moe.blocks import find_blocks
from toolkit.moe.channels import WIDTH_KEYS, ChannelAxis, ChannelGroup, channel_groups, expert_width, narrowed
from toolkit.moe.completeness import EXPERT_NUMBER, Source
from toolkit.moe.load import quantization_of
from toolkit.runtime.errors import PollardError

CHANNELS_FILE = "plan.safetensors"


class WidthCut(Cut):
    """Which channels stay, per MoE block and per MLP on the same key.

    `keep`: the experts' new width. `channels`: by block name int64 [kept experts, keep], the experts in the plan's order; by an
    MLP's module name int64 [its new width]; ascending. They lie in `file` beside the plan, whose `checksum` they must have.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    kind: Literal["width"] = "width"
    keep: int = Field(ge=1)
    file: str = CHANNELS_FILE
    checksum: str | None = None
    channels: dict[str, torch.Tensor] = Field(default_factory=dict, exclude=True)

    def check(self, model: PreTrainedModel, plan: PlanView) -> None:
        if quantized := quantization_of(model.config):
            raise PollardError(
                f"The weights are quantized ({quantized}), in blocks that hold several channels: narrow a plain copy of the "
                "checkpoint (bfloat16), or leave pruning.width out.",
                code="width.quantized",
            )
        if not self.channels:
            raise PollardError(
                f"The plan narrows experts to {self.keep} channels and does not say which: {self.file} has to lie beside it.",
                code="plan.no-channels",
            )
        groups = {group.name: group for group in self._groups(model, plan)}
        if groups.keys() != self.channels.keys():
            missing, unknown = sorted(groups.keys() - self.channels.keys()), sorted(self.channels.keys() - groups.keys())
            raise PollardError(
                f"The plan's channels are another model's: blocks and MLPs that it does not name {missing[:3]}, and that the "
                f"model does not have {unknown[:3]}.",
                code="plan.other-model",
            )
        for name, group in groups.items():
            self._check_channels(group, self.channels[name], plan)

    def _check_channels(self, group: ChannelGroup, kept: torch.Tensor, plan: PlanView) -> None:
        experts = [] if group.experts is None else [len(self._kept_experts(group, plan))]
        if list(kept.shape) != [*experts, group.new_width]:
            raise PollardError(
                f"The plan has channels {list(kept.shape)} for {group.name}; {[*experts, group.new_width]} are needed.",
                code="plan.other-width",
            )
        if (kept.diff() <= 0).any() or kept.min() < 0 or kept.max() >= group.width:
            raise PollardError(
                f"The plan's channels of {group.name} must be ascending, without duplicates, and in 0…{group.width - 1}.",
                code="plan.channels",
            )

    def _groups(self, model: PreTrainedModel, plan: PlanView) -> list[ChannelGroup]:
        """Those of layers that stay."""
        others = [cut for cut in plan.cuts if cut is not self]
        groups = channel_groups(model, self.keep)
        return [group for group in groups if all(cut.rename(group.name, group.name) is not None for cut in others)]

    def _kept_experts(self, group: ChannelGroup, plan: PlanView) -> list[int]:
        cut = next((cut for cut in plan.cuts if isinstance(cut, ExpertsCut)), None)
        return cut.kept[group.name] if cut else list(range(group.experts or 0))

    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        now, (key, narrow) = expert_width(model), narrowed(model, self.keep)
        for group in self._groups(model, plan):
            for name, axis in group.tensors.items():
                _shorten(model, name, axis, self.channels[group.name])
        for module, after in zip(model.modules(), narrow.modules(), strict=True):  # sizes that modules keep
            for attribute, value in vars(after).items():
                if type(value) is int and vars(module).get(attribute) != value:
                    setattr(module, attribute, value)
        configs: list[Any] = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
        for config in {id(part): part for found in configs for part in (found, found.get_text_config())}.values():
            if getattr(config, key, None) == now:
                setattr(config, key, self.keep)

    def masks(self, model: PreTrainedModel, plan: PlanView) -> "list[ChannelMask]":
        blocks, found = {block.name: block for block in find_blocks(model)}, []
        for group in self._groups(model, plan):
            mask = torch.zeros(*self.channels[group.name].shape[:-1], group.width, dtype=torch.bool)
            mask.scatter_(-1, self.channels[group.name], True)
            if group.experts is None:
                found.append(ChannelMask(group.name, model.get_submodule(group.down.rpartition(".")[0]), mask))
                continue
            every = torch.ones(group.experts, group.width, dtype=torch.bool)
            every[self._kept_experts(group, plan)] = mask
            found.append(ChannelMask(group.name, blocks[group.name].experts, every))
        return found

    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        group_of = {name: group for group in self._groups(model, plan) for name in group.tensors}
        return {
            tensor.name: self._indices_of(tensor, group_of[tensor.parameter], plan)
            for tensor in tensors
            if tensor.parameter in group_of
        }

    def _indices_of(self, tensor: AffectedTensor, group: ChannelGroup, plan: PlanView) -> Indices:
        axis, kept = group.tensors[tensor.parameter], self.channels[group.name]
        number, shape, leading = EXPERT_NUMBER.search(tensor.name), tensor.shape, 0
        if group.experts is not None:
            if number:
                kept = kept[self._kept_experts(group, plan).index(int(number[0]))]
            else:
                leading = 1
                if shape[:1] != (group.experts,):
                    raise UnknownLayoutError(f"{tensor.name} {list(shape)} has no row per expert of {list(tensor.before)}")
        rows = len(axis.channel_of_row)
        others = math.prod(tensor.before[1 if group.experts is not None else 0 :]) // rows  # what each row holds
        if tensor.reordered:
            raise UnknownLayoutError(f"transformers puts the rows of {tensor.name} into another order when it loads them")
        if not tensor.converted and shape == tensor.before:
            along = axis.axis
        else:
            sizes = {at: math.prod(shape[leading:]) // size for at, size in enumerate(shape) if at >= leading}
            fitting = [at for at, other in sizes.items() if other == others and rows % shape[at] == 0]
            if len(fitting) != 1:
                raise UnknownLayoutError(f"{tensor.name} {list(shape)} does not say which of its axes holds the channels")
            along = fitting[0]
        # A tensor that becomes a part of the parameter (the gate's rows, or the up projection's) has one row for each channel
        return {along: (axis.rows(kept) if shape[along] == rows else kept).numpy()}

    def rename(self, name: str, parameter: str) -> str | None:
        return name

    def refuses(self, name: str) -> str | None:
        return None

    def check_stored(self, sources: Mapping[str, Sequence[Source]], affected: Mapping[str, Shape]) -> None:
        pass  # sizes are checked for every kind of cut

    @classmethod
    def config(cls, config: Any) -> ConfigFile:
        values = {key: getattr(config, key, None) for key in WIDTH_KEYS}
        return {key: value for key, value in values.items() if isinstance(value, int)}

    def choice(self) -> Any:
        return {"keep": self.keep, "channels": checksum(self.channels)}

    def summary(self) -> dict[str, object]:
        return self.model_dump(include={"kind", "criterion", "keep"})

    def in_words(self) -> str:
        return f"{self.keep:,} channels by {self.criterion}"


def checksum(channels: Mapping[str, torch.Tensor]) -> str:
    """Of a choice of channels, whatever type of integers they are stored as."""
    digest = hashlib.sha256()
    for name, kept in sorted(channels.items()):
        digest.update(f"{name}{list(kept.shape)}".encode() + kept.int().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_channels(file: Path, expected: str | None) -> dict[str, torch.Tensor]:
    """Raises PollardError where `file` is missing, damaged or another plan's."""
    try:
        channels = {name: kept.long() for name, kept in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise PollardError(
            f"Cannot read the channels that the plan keeps from {file} ({error}). They lie beside the plan: copy both.",
            code="plan.no-channels",
        ) from None
    if expected and checksum(channels) != expected:
        raise PollardError(
            f"{file} is not what the plan beside it was written with: their checksums differ. Copy both files of one plan.",
            code="plan.other-channels",
        )
    return channels


def _shorten(model: PreTrainedModel, name: str, axis: ChannelAxis, channels: torch.Tensor) -> None:
    """Leaves the rows of `channels` of a parameter, in place: of every expert others, where there is a row of them for each."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    parameter = getattr(owner, attribute)
    rows = axis.rows(channels).to(parameter.device)
    if rows.ndim > 1:
        pairs = zip(parameter.data.unbind(0), rows.unbind(0), strict=True)
        kept = torch.stack([expert.index_select(axis.axis - 1, of_expert) for expert, of_expert in pairs])
    else:
        kept = parameter.data.index_select(axis.axis, rows)
    setattr(owner, attribute, nn.Parameter(kept, parameter.requires_grad))


class ChannelMask(NamedTuple):
    """Which channels stay of a block's experts (`mask` [E, W]), or of an MLP whose down projection `module` is ([W])."""

    name: str  # of the group of channels
    module: nn.Module
    mask: torch.Tensor

    @contextmanager
    def applied(self) -> Iterator[None]:
        if self.mask.ndim > 1:
            with _masked_experts(self.module, self.mask):
                yield
            return
        handle = self.module.register_forward_pre_hook(partial(_mask_inputs, self.mask))
        try:
            yield
        finally:
            handle.remove()


def _mask_inputs(mask: torch.Tensor, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return args[0] * mask.to(args[0].device), *args[1:]


@contextmanager
def _masked_experts(experts: nn.Module, mask: torch.Tensor) -> Iterator[None]:
    """The down projection's columns outside of `mask` [E, W] are zero while the experts run, and only then: of one block at a
    time there is a second copy."""
    whole: list[nn.Parameter] = []

    def before(module: Any, args: Any) -> None:
        whole.append(module.down_proj)
        on_device = mask.to(module.down_proj.device).unsqueeze(2 if module.is_transposed else 1)
        module.down_proj = nn.Parameter(module.down_proj.data * on_device, requires_grad=False)

    def after(module: Any, args: Any, output: Any) -> None:
        module.down_proj = whole.pop()

    handles = [experts.register_forward_pre_hook(before), experts.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
