"""The two matrices that every expert multiplies with, whatever their layout behind transformers' experts interface.

    hidden [T, H] ──up [2W, H] (gate and up projection in one; [W, H] where there is no gate)──► … ──► channels [T, W]
    channels [T, W] ──down [H, W]──► output [T, H]

Shape legend: T tokens, H hidden size, W width (channels).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ExpertMatrix:
    """The same matrix of all experts of a block: one fused parameter."""

    name: str  # the parameter's, in the experts module
    parameter: nn.Parameter
    transposed: bool

    def of(self, expert: int) -> torch.Tensor:
        """A view [out, in] of one expert's weights: what is written into it is the model's."""
        weight = self.parameter.data[expert]
        return weight.T if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        """out, in."""
        rows, columns = self.parameter.shape[1:]
        return (columns, rows) if self.transposed else (rows, columns)


def expert_matrices(experts: nn.Module) -> tuple[ExpertMatrix, ExpertMatrix]:
    """Into the channels, and out of them."""
    module: Any = experts
    names = "gate_up_proj" if module.has_gate else "up_proj", "down_proj"
    up, down = (ExpertMatrix(name, getattr(module, name), module.is_transposed) for name in names)
    return up, down
