"""Observe a model's MoE blocks while it runs, through transformers' registered experts implementation.

The interface shows what the experts get, their gate weights and outputs; hooks around it collect the router's input and logits
and the residual stream, and name no family. A family whose modules do not show one of these has None there.

Shape legend: T tokens (batch and sequence flattened), E experts, K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import MoEBlock, find_blocks

IMPLEMENTATION = "pollard_observe"


class BlockActivations(NamedTuple):
    """What one MoE block computed for one batch; rows of padding are included."""

    block: str
    index_TK: torch.Tensor  # chosen experts
    gate_TK: torch.Tensor  # their final gate weights
    outputs_TKH: torch.Tensor  # their outputs, before weighting
    routed_TH: torch.Tensor  # y: the weighted sum of the outputs, without shared experts
    hidden_TH: torch.Tensor  # x: what the experts got
    residual_TH: torch.Tensor | None  # h: the residual stream before the block's output is added
    router_input_TH: torch.Tensor | None
    logits_TE: torch.Tensor | None
    probability_TE: torch.Tensor | None  # p: the router's full distribution, where it is a softmax
    run_expert: Callable[[torch.Tensor, int], torch.Tensor]  # (hidden [T', H], expert) -> its unweighted outputs [T', H]
    experts: nn.Module  # with its weights, for as long as the observer runs


BlockObserver = Callable[[BlockActivations], None]


@contextmanager
def observing(model: PreTrainedModel, observer: BlockObserver) -> Iterator[None]:
    """Calls `observer` for every MoE block of every forward pass inside the context; the logits stay the model's own."""
    blocks = find_blocks(model)
    names = {id(block.experts): block.name for block in blocks}
    before = model.config._experts_implementation

    def observe(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
        # Each (token, expert) pair becomes a token of its own with gate weight 1: the family's own implementation then
        # returns every expert's unweighted output, whatever its activation, biases or layout.
        tokens, k = index_TK.shape
        run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)

        def outputs_of(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return run(experts, hidden, index.unsqueeze(1), gate_TK.new_ones(len(index), 1))

        outputs_TKH = outputs_of(hidden_TH.repeat_interleave(k, dim=0), index_TK.flatten()).view(tokens, k, -1)
        routed_TH = (outputs_TKH * gate_TK.unsqueeze(-1)).sum(1)
        name = names[id(experts)]
        here = contexts[name]
        observer(
            BlockActivations(
                name, index_TK, gate_TK, outputs_TKH, routed_TH, hidden_TH, here.residual(hidden_TH), here.router_input_TH,
                here.logits_TE, here.probabilities(index_TK, gate_TK),
                lambda hidden, expert: outputs_of(hidden, index_TK.new_full((len(hidden),), expert)),
                experts,
            )
        )  # fmt: skip
        here.clear()
        return routed_TH.to(hidden_TH.dtype)

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, observe)
    model.set_experts_implementation(IMPLEMENTATION)
    try:
        with router_context(model, blocks) as contexts:
            yield
    finally:
        model.set_experts_implementation(before)


def all_expert_outputs(activations: BlockActivations, rows: torch.Tensor, experts: int) -> torch.Tensor:
    """F [T, E, H]: every expert's unweighted output for the tokens `rows` [T]; outputs of the chosen experts are reused."""
    index_TK, hidden_TH = activations.index_TK[rows], activations.hidden_TH[rows]
    F_TEH = hidden_TH.new_empty(len(rows), experts, activations.outputs_TKH.shape[-1])
    spread = index_TK.unsqueeze(-1).expand(-1, -1, F_TEH.shape[-1])
    F_TEH.scatter_(1, spread, activations.outputs_TKH[rows].to(F_TEH.dtype))
    chosen_TE = torch.zeros(len(rows), experts, dtype=torch.bool, device=rows.device).scatter_(1, index_TK, True)
    for expert in range(experts):
        others = (~chosen_TE[:, expert]).nonzero().flatten()
        if len(others):
            F_TEH[others, expert] = activations.run_expert(hidden_TH[others], expert).to(F_TEH.dtype)
    return F_TEH


class RouterContext:
    """The modules around one block's experts, as the running forward pass used them."""

    def __init__(self, block: MoEBlock) -> None:
        self.experts = block.expert_count
        self.router_input_TH: torch.Tensor | None = None
        self.logits_TE: torch.Tensor | None = None
        self.norms: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # input and output of the modules around the block
        self.softmax: bool | None = None  # whether the gate weights are a softmax of the logits; decided by the first batch

    def record_router(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], torch.Tensor):
            self.router_input_TH = args[0].reshape(-1, args[0].shape[-1])
        logits = output[0] if isinstance(output, tuple) else output
        whole = isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.shape[-1:] == (self.experts,)
        self.logits_TE = logits.reshape(-1, self.experts) if whole else None

    def record_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
    """The router context of every block by its name, filled anew in every forward pass inside the context."""
    modules = dict(model.named_modules())
    contexts, handles = {}, []
    try:
        for block in blocks:
            here = contexts[block.name] = RouterContext(block)
            handles.append(block.router.register_forward_hook(here.record_router))
            around_block = [*block.module.children(), *modules[block.name.rpartition(".")[0]].children()]
            for module in around_block:
                if module not in (block.module, block.router, block.experts) and not isinstance(module, nn.ModuleList):
                    handles.append(module.register_forward_hook(here.record_module))
        yield contexts
    finally:
        for handle in handles:
            handle.remove()
