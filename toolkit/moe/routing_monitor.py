"""Which experts a model in training uses, counted by hooks that change nothing.

Shape legend: T tokens (batch and sequence flattened), E experts, K experts per token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from toolkit.moe.packing import real_positions


class RoutingMonitor:
    """Counts per MoE block how often each expert was chosen, and how many tokens passed, since the last `take`.

    Finds the experts modules themselves, whatever wraps the model (DeepSpeed) or its experts (an adapter).
    Padding does not count. While `counting` is false, only the tokens are counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counting = False
        self._mask_T: torch.Tensor | None = None
        self._counts: dict[str, torch.Tensor] = {}
        self._waiting: list[torch.Tensor] = []  # not read at once: that would make a GPU wait
        model.register_forward_pre_hook(self._start_pass, with_kwargs=True)
        for name, module in model.named_modules():
            if hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "num_experts"):
                module.register_forward_pre_hook(self._counter(block_name(name)), with_kwargs=True)

    def take(self) -> tuple[dict[str, list[int]], int]:
        """Counts per block [E] (of blocks that were counted), and the number of training tokens; both restart at zero."""
        counts = {name: count_E.tolist() for name, count_E in self._counts.items()}
        tokens = sum(int(number) for number in self._waiting)
        self._counts, self._waiting = {}, []
        return counts, tokens

    def _start_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        mask_BS, positions_BS = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask_BS is None and positions_BS is not None:  # packed rows
            mask_BS = real_positions(positions_BS)
        self._mask_T = mask_BS.reshape(-1).bool() if mask_BS is not None and mask_BS.dim() == 2 else None
        if model.training and self._mask_T is not None:
            self._waiting.append(self._mask_T.sum())

    def _counter(self, name: str) -> Any:
        def count(experts: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if not (self.counting and experts.training):
                return
            index_TK = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            if self._mask_T is not None and len(self._mask_T) == len(index_TK):
                index_TK = index_TK[self._mask_T]
            # Families mark tokens without an expert by an index behind the last
            count_E = torch.bincount(index_TK.flatten(), minlength=experts.num_experts)[: experts.num_experts]
            self._counts[name] = self._counts.get(name, 0) + count_E

        return count


def block_name(experts: str) -> str:
    """The MoE block's name in the plain model, from the path of its experts module in one that an adapter wraps."""
    parts = [part for part in experts.removeprefix("base_model.model.").split(".") if part != "base_layer"]
    return ".".join(parts[:-1])
