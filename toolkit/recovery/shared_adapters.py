"""One low-rank update for all experts of a block (`finetuning.lora.experts: shared`), told to PEFT as an update of each.

PEFT keeps the adapters of E fused experts in two matrices: A [E·r, in], by expert and then rank, and B [out, r·E], by rank and
then expert. Here both are made of one expert's, [r, in] and [out, r], and only these train; unfused experts use the same two
layers. What is saved are the adapters of all experts, equal ones: stock PEFT loads and merges them like any others.
"""

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from torch.nn.utils import parametrize

from toolkit.moe import UNFUSED

ADAPTER = "default"


class OfEveryExpert(nn.Module):
    """Both matrices of PEFT, made of one expert's."""

    def __init__(self, experts: int, into: bool) -> None:
        """`into`: of A, whose rows are the experts'; else of B, whose columns are."""
        super().__init__()
        self.experts, self.into = experts, into

    def forward(self, shared: torch.Tensor) -> torch.Tensor:
        return shared.repeat(self.experts, 1) if self.into else shared.repeat_interleave(self.experts, dim=1)

    def right_inverse(self, each: torch.Tensor) -> torch.Tensor:
        """The first expert's."""
        return each[: len(each) // self.experts].clone() if self.into else each[:, :: self.experts].clone()


def share_adapters(model: PeftModel) -> None:
    """Leaves one adapter per weight of the experts of a block to train, in place."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, ParamWrapper):
            for part, into in ((module.lora_A, True), (module.lora_B, False)):
                parametrize.register_parametrization(part[ADAPTER], "weight", OfEveryExpert(module.num_experts, into))
        elif isinstance(module, LoraLayer) and f".{UNFUSED}." in name:
            experts, _, own = name.rpartition(f".{UNFUSED}.")
            first = modules[f"{experts}.{UNFUSED}.0.{own.partition('.')[2]}"]
            module.lora_A[ADAPTER], module.lora_B[ADAPTER] = first.lora_A[ADAPTER], first.lora_B[ADAPTER]  # type: ignore[index]


def adapters_of_every_expert(model: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` that trained, by name in `model`, with those that experts share for each of them; others stay as they are."""
    found = dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, OfEveryExpert):
            layer = name.partition(".parametrizations.")[0]
            found[f"{layer}.weight"] = module(found.pop(f"{layer}.parametrizations.weight.original"))
        elif name.endswith(f".{UNFUSED}") and isinstance(module, nn.ModuleList):
            of_first = {key: tensor for key, tensor in weights.items() if key.startswith(f"{name}.0.")}
            for expert in range(1, len(module)):
                for key, tensor in of_first.items():
                    found.setdefault(f"{name}.{expert}.{key.removeprefix(f'{name}.0.')}", tensor)
    return found
