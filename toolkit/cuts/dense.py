"""The dense form: the kept experts of each MoE block as one feed-forward layer (expert concatenation, arXiv 2605.28207).

    expert 0   gate [W, H]  up [W, H]  down [H, W] · c_0 ┐
    expert 5   gate [W, H]  up [W, H]  down [H, W] · c_5 ├─► gate [nW, H], up [nW, H], down [H, nW]
    shared     gate [S, H]  up [S, H]  down [H, S] · s   ┘

Every token passes every kept expert, with the same weight c_e: no router is left. That is exactly the model whose gate weights
are replaced by these numbers (`with_fixed_gates`). How they are chosen: toolkit/calibration/dense_coefficients.py.

Shape legend: T tokens, E experts, K experts per token, H hidden size, W width of an expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.cuts.dense_twins import DenseLayer, DenseTwin, dense_twin
from toolkit.cuts.mlp_layout import MlpWeights, mlp_tensors, mlp_weights, rows_of_channels
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.channels import block_width
from toolkit.moe.load import auto_class
from toolkit.runtime.errors import PollardError

IMPLEMENTATION = "pollard_fixed_gates"


class DenseBlock(BaseModel):
    """The weights of one block's kept experts in the dense form."""

    model_config = ConfigDict(extra="forbid")
    coefficients: list[float]
    """One for each kept expert, in their order."""
    shared: float = 1.0
    """Of the shared experts; other than 1 only where a gate weighs them."""
    error: float | None = None
    """Of the block's output on the calibration tokens: squared, relative to the original's."""
    mean_gate_error: float | None = None
    """The same with every expert's mean gate weight as its coefficient."""


def merged_model(model: PreTrainedModel, blocks: Mapping[str, DenseBlock]) -> PreTrainedModel:
    """The dense twin of a loaded (and pruned) model, as a new model. Raises PollardError as `dense_twin` does, and where `blocks`
    are another model's."""
    twin = dense_twin(model)
    check_coefficients(model, blocks)
    dense = auto_class(type(twin.model.config)).from_config(twin.model.config, dtype=model.dtype).eval()
    dense.load_state_dict(dense_tensors(model, twin, blocks), strict=True)
    return dense.to(model.device)


def check_coefficients(model: PreTrainedModel, blocks: Mapping[str, DenseBlock]) -> None:
    """Raises PollardError unless there is a coefficient for every expert of `model`."""
    needed = {block.name: block.expert_count for block in find_blocks(model)}
    given = {name: len(block.coefficients) for name, block in blocks.items()}
    if needed != given:
        wrong = sorted(name for name in needed.keys() | given.keys() if needed.get(name) != given.get(name))
        raise PollardError(
            f"The coefficients of the dense form are another model's: {wrong[0]} has {needed.get(wrong[0], 0)} experts, and "
            f"{given.get(wrong[0], 0)} coefficients.",
            code="dense.other-model",
        )


def dense_tensors(
    model: PreTrainedModel, twin: DenseTwin, blocks: Mapping[str, DenseBlock], prefix: str = ""
) -> dict[str, torch.Tensor]:
    """The twin's tensors whose names begin with `prefix`, by name; what `model` has of them must be loaded."""
    ours, theirs = model.state_dict(), twin.model.state_dict()
    mlps = {layer.mlp: layer for layer in twin.layers}
    found: dict[str, torch.Tensor] = {}
    for layer in twin.layers:
        if layer.mlp.startswith(prefix):
            found |= _mlp_tensors(model, twin, layer, blocks[layer.block])
    replaced = tuple(f"{mlp}." for mlp in mlps)
    for name in theirs:
        if name.startswith(prefix) and not name.startswith(replaced):
            found[name] = ours[name]
    for mlp in twin.mlps:
        if mlp.startswith(prefix):
            found |= _padded(model, twin, mlp)
    return found


def _mlp_tensors(model: PreTrainedModel, twin: DenseTwin, layer: DenseLayer, weights: DenseBlock) -> dict[str, torch.Tensor]:
    """The feed-forward layer that takes a block's place."""
    block = next(block for block in find_blocks(model) if block.name == layer.block)
    parts = [_expert_weights(block, expert) for expert in range(block.expert_count)]  # first [W, H], second [W, H], down [H, W]
    parts += [mlp_weights(model.get_submodule(name), twin.shared_layouts[name]) for name in layer.shared]
    coefficients = [*weights.coefficients, *[weights.shared] * len(layer.shared)]
    first, second = (torch.cat([part[at] for part in parts]) for at in range(2))
    down = torch.cat([_scaled(part[2], coefficient) for part, coefficient in zip(parts, coefficients, strict=True)], dim=1)
    return _laid_out(twin, layer.mlp, first, second, down)


def _expert_weights(block: MoEBlock, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    experts: Any = block.experts
    fused, down = experts.gate_up_proj.data[expert], experts.down_proj.data[expert]
    if experts.is_transposed:
        fused, down = fused.T, down.T
    first, second = rows_of_channels(block.experts, block_width(block)).to(fused.device)
    return fused[first], fused[second], down


def _scaled(down: torch.Tensor, coefficient: float) -> torch.Tensor:
    """In double precision, and rounded once."""
    return down if coefficient == 1 else (down.double() * coefficient).to(down.dtype)


def _padded(model: PreTrainedModel, twin: DenseTwin, mlp: str) -> dict[str, torch.Tensor]:
    """The feed-forward layer of a layer that is dense already, with channels of zeros up to the twin's width."""
    return _laid_out(twin, mlp, *mlp_weights(model.get_submodule(mlp), twin.layout))


def _laid_out(
    twin: DenseTwin, mlp: str, first: torch.Tensor, second: torch.Tensor, down: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The tensors of a feed-forward layer, by name; channels of zeros where it has fewer than the twin."""
    missing = twin.width - down.shape[1]
    first, second = (nn.functional.pad(rows, (0, 0, 0, missing)) for rows in (first, second))
    return mlp_tensors(mlp, twin.layout, MlpWeights(first, second, nn.functional.pad(down, (0, missing))))


@contextmanager
def with_fixed_gates(
    model: PreTrainedModel, blocks: Mapping[str, DenseBlock], kept: Mapping[str, Sequence[int]] | None = None
) -> Iterator[PreTrainedModel]:
    """`model` with the gate weights of `blocks` replaced by their coefficients, for every token, inside the context: what the
    dense form computes. `kept`: the experts that these are of, by block; all unless given. Other blocks route as ever."""
    before = model.config._experts_implementation
    layers = {block.experts: block for block in find_blocks(model) if block.name in blocks}
    fixed = {
        experts: (list(kept[block.name]) if kept else list(range(block.expert_count)), blocks[block.name].coefficients)
        for experts, block in layers.items()
    }

    def run(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
        own: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)
        if experts not in fixed:
            return own(experts, hidden_TH, index_TK, gate_TK)
        chosen, coefficients = fixed[experts]
        index, gate = index_TK.new_tensor(chosen), torch.tensor(coefficients, dtype=gate_TK.dtype, device=gate_TK.device)
        return own(experts, hidden_TH, index.expand(len(hidden_TH), -1), gate.expand(len(hidden_TH), -1))

    with ExitStack() as stack:
        for block in layers.values():
            _fix_shared_gate(stack, block, blocks[block.name].shared)
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, run)
        model.set_experts_implementation(IMPLEMENTATION)
        stack.callback(model.set_experts_implementation, before)
        yield model


def _fix_shared_gate(stack: ExitStack, block: MoEBlock, coefficient: float) -> None:
    """The gate of shared experts is open, and their output is weighted."""
    shared = [(name, child) for name, child in block.module.named_children() if name.startswith("shared")]
    if not any(isinstance(child, nn.Linear) for _, child in shared):
        return
    for _, child in shared:
        hook = _open_gate if isinstance(child, nn.Linear) else partial(_weighted, coefficient)
        stack.callback(child.register_forward_hook(hook).remove)


def _open_gate(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.full_like(output, torch.inf)  # of a sigmoid


def _weighted(coefficient: float, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * coefficient
