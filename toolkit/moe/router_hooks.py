"""What stands around the experts when they run: the router's input and logits, and the residual stream.

The experts interface shows none of these, so hooks collect them; they name no family. A family whose modules do not
show one of them has None there.

Shape legend: T tokens (batch and sequence flattened), E experts, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from toolkit.moe.blocks import MoEBlock


class RouterContext:
    """One block's surroundings in the running forward pass."""

    def __init__(self, block: MoEBlock) -> None:
        self.experts = block.expert_count
        self.router_input_TH: torch.Tensor | None = None
        self.logits_TE: torch.Tensor | None = None
        self.norms: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # input and output of modules beside the block
        self.softmax: bool | None = None  # whether the gate weights are a softmax of the logits; the first batch tells

    def routed(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], torch.Tensor):
            self.router_input_TH = args[0].reshape(-1, args[0].shape[-1])
        logits = output[0] if isinstance(output, tuple) else output
        whole = isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.shape[-1:] == (self.experts,)
        self.logits_TE = logits.reshape(-1, self.experts) if whole else None

    def passed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(output, torch.Tensor) and isinstance(args[0], torch.Tensor) and args[0].shape == output.shape:
            self.norms[module] = (args[0], output)

    def residual(self, hidden_TH: torch.Tensor) -> torch.Tensor | None:
        """h [T, H], the residual stream: the input of the module whose output, untouched, is what the experts got."""
        for before, after in self.norms.values():
            if after.data_ptr() == hidden_TH.data_ptr() and after.numel() == hidden_TH.numel():
                return before.reshape(hidden_TH.shape)
        return None

    def probabilities(self, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor | None:
        """p [T, E], the softmax of the logits, where the gate weights follow it (up to a factor per token)."""
        if self.logits_TE is None or self.softmax is False or len(self.logits_TE) != len(index_TK):
            return None
        p_TE = self.logits_TE.softmax(-1, dtype=torch.float64)
        if self.softmax is None:
            chosen, gates = p_TE.gather(1, index_TK), gate_TK.double()
            # Routers take their softmax in float32 even in a float64 model, and return it in the model's dtype
            wide = 64 * max(torch.finfo(gate_TK.dtype).eps, torch.finfo(torch.float32).eps)
            self.softmax = torch.allclose(chosen / chosen.sum(1, True), gates / gates.sum(1, True), rtol=wide, atol=wide)
        return p_TE if self.softmax else None

    def clear(self) -> None:
        self.router_input_TH = self.logits_TE = None
        self.norms.clear()


@contextmanager
def router_context(model: nn.Module, blocks: Sequence[MoEBlock]) -> Iterator[dict[str, RouterContext]]:
    """Per block its surroundings, filled anew in every forward pass inside the context."""
    modules = dict(model.named_modules())
    around, handles = {}, []
    try:
        for block in blocks:
            here = around[block.name] = RouterContext(block)
            handles.append(block.router.register_forward_hook(here.routed))
            beside = [*block.module.children(), *modules[block.name.rpartition(".")[0]].children()]
            for module in beside:
                if module not in (block.module, block.router, block.experts) and not isinstance(module, nn.ModuleList):
                    handles.append(module.register_forward_hook(here.passed))
        yield around
    finally:
        for handle in handles:
            handle.remove()
