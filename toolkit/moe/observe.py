"""Observe a model's MoE blocks while it runs, through transformers' registered experts implementation.

The interface shows what the experts get, their gate weights and outputs; hooks around it collect the router's input and logits
and the residual stream, and name no family. A family whose modules do not show one of these has None there.

Where every expert's output is wanted (`EveryExpert`), all are computed in dense products before the block's own output, which
then is made of them: a token's routed experts run once. Nothing there waits for a GPU: no token is looked for, shapes follow
from the batch.

Shape legend: T tokens (batch and sequence flattened), R of them, E experts, K experts per token, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.batches import TokenRows
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.channels import expert_channels, expert_output

IMPLEMENTATION = "pollard_observe"
PRODUCT_ROWS = {"cpu": 1024, "cuda": 8192}  # tokens in a product: on a CPU what an expert makes of them stays in the cache
EVERY_BYTES = 2**31  # of every expert's outputs for one batch; larger batches are not kept whole


class EveryExpert(NamedTuple):
    """What every expert of a block answers to some tokens of a batch."""

    rows: torch.Tensor  # [R], the tokens
    outputs_REH: torch.Tensor  # unweighted


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
    every: EveryExpert | None = None  # where it was asked for


BlockObserver = Callable[[BlockActivations], None]


def _of_none(block: str) -> None:
    return None


@contextmanager
def observing(
    model: PreTrainedModel, observer: BlockObserver, every_expert: Callable[[str], TokenRows | None] = _of_none
) -> Iterator[None]:
    """Calls `observer` for every MoE block of every forward pass inside the context; the logits stay the model's own.

    `every_expert(block)`: the rows of the batch at work, where its real tokens' outputs of all experts are wanted as well."""
    blocks = find_blocks(model)
    by_experts = {id(block.experts): block for block in blocks}
    before = model.config._experts_implementation

    def observe(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
        # Each (token, expert) pair becomes a token of its own with gate weight 1: the family's own implementation then
        # returns every expert's unweighted output, whatever its activation, biases or layout.
        tokens, k = index_TK.shape
        run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(before, cast(Any, type(experts).forward).__wrapped__)

        def outputs_of(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return run(experts, hidden, index.unsqueeze(1), gate_TK.new_ones(len(index), 1))

        def chosen_outputs(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return outputs_of(hidden.unsqueeze(1).expand(-1, k, -1).flatten(0, 1), index.flatten()).view(len(hidden), k, -1)

        block = by_experts[id(experts)]
        name, every, rows = block.name, None, every_expert(block.name)
        if rows is not None and tokens * block.expert_count * hidden_TH.shape[-1] * hidden_TH.element_size() <= EVERY_BYTES:
            real, padding = (part.to(hidden_TH.device) for part in (rows.real, rows.padding))  # a model may be on several
            every = EveryExpert(real, every_expert_outputs(experts, hidden_TH[real], block.expert_count))
            outputs_TKH = _chosen(every.outputs_REH, index_TK[real])
            if len(padding):  # nobody reads it, but the layers behind compute with something
                padding_RKH = chosen_outputs(hidden_TH[padding], index_TK[padding])
                real_RKH, outputs_TKH = outputs_TKH, outputs_TKH.new_empty(tokens, *padding_RKH.shape[1:])
                outputs_TKH.index_copy_(0, real, real_RKH).index_copy_(0, padding, padding_RKH)
        else:
            outputs_TKH = chosen_outputs(hidden_TH, index_TK)
        routed_TH = (outputs_TKH * gate_TK.unsqueeze(-1)).sum(1)
        here = contexts[name]
        observer(
            BlockActivations(
                name, index_TK, gate_TK, outputs_TKH, routed_TH, hidden_TH, here.residual(hidden_TH), here.router_input_TH,
                here.logits_TE, here.probabilities(index_TK, gate_TK),
                lambda hidden, expert: outputs_of(hidden, index_TK.new_full((len(hidden),), expert)),
                experts, every,
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


def every_expert_outputs(experts: nn.Module, hidden_TH: torch.Tensor, count: int) -> torch.Tensor:
    """F [T, E, H]: the unweighted output of each of `count` experts for every token, by the definition of transformers' experts
    interface."""
    hidden_TH = hidden_TH.to(cast(Any, experts).down_proj.dtype)
    F_TEH = hidden_TH.new_empty(len(hidden_TH), count, hidden_TH.shape[-1])
    rows = PRODUCT_ROWS.get(hidden_TH.device.type, PRODUCT_ROWS["cpu"])
    for into_REH, hidden_RH in zip(F_TEH.split(rows), hidden_TH.split(rows), strict=True):
        for expert in range(count):
            into_REH[:, expert] = expert_output(experts, expert_channels(experts, hidden_RH, expert), expert)
    return F_TEH


def _chosen(F_TEH: torch.Tensor, index_TK: torch.Tensor) -> torch.Tensor:
    """[T, K, H]: of every expert's outputs those of the chosen experts."""
    tokens, experts, hidden = F_TEH.shape
    first = torch.arange(0, tokens * experts, experts, device=index_TK.device)
    return F_TEH.view(-1, hidden).index_select(0, (first.unsqueeze(1) + index_TK).flatten()).view(tokens, -1, hidden)


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
