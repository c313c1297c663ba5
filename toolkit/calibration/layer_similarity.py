"""Compares the hidden states before and after decoder layers over the calibration batches.

The states are taken from the layers themselves (`output_hidden_states` holds the last one after the final norm). Every gap
between layers is of interest, so a batch's states are kept until it has passed the last layer:

    loaded       one batch after the other: L+1 states of one batch, on the model's device
    streamed     as many batches at once as STATE_BYTES hold on the host; the layers are read anew for the next ones

Shape legend: B sequences, S positions, T tokens, H hidden size (of all residual streams together), N = L+1 states.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread, current_thread
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.calibration.calibrate import CalibrationSource
from toolkit.cuts.layer_similarities import LayerSimilarities, SourceSimilarities
from toolkit.cuts.statistics import PARTS, Part, TokenCounts
from toolkit.moe import (
    ActivationOffload,
    Batch,
    ForwardPass,
    ObservedBatch,
    StreamedModel,
    find_blocks,
    hidden_states_of,
    layers_of,
    one_layer_at_a_time,
    split_mask,
)
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress, progress_display

STATE_BYTES = 4 * 2**30  # of hidden states on the host, for a model that is streamed
CHUNK_BYTES = 256 * 2**20  # of a chunk of them in float64
States = list[torch.Tensor]  # h_0 … h_L of one batch, each [T, H]


@torch.no_grad()
def layer_similarities(model: PreTrainedModel | StreamedModel, sources: Sequence[CalibrationSource]) -> LayerSimilarities:
    """The similarities of the hidden states, summed over the tokens of each source. Padding never counts.

    Batches as for `calibrate`; under a launcher each rank passes its own, and all get the sums of all. Raises PollardError
    for no tokens at all, for states that are not finite, and where the layers are not called in order, each once.
    """
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    layers = layers_of(whole, find_blocks(whole))[1]
    sums = [_Sums(len(layers), model.device) for _ in sources]
    if isinstance(model, StreamedModel):
        _add_streamed(
            model, layers, [(batch, one) for source, one in zip(sources, sums, strict=True) for batch in source.batches]
        )
    else:
        for source, one in zip(sources, sums, strict=True):
            for batch in progress(source.batches, "comparing the layers"):
                inputs, observed = split_mask(batch, model.device)
                with _recorded_states(layers) as states:
                    model.base_model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
                one.add(states[current_thread()], observed)
    shares = sum(source.weight for source in sources)
    found = [one.reduced(source.weight / shares) for source, one in zip(sources, sums, strict=True)]
    _check(found)
    return LayerSimilarities(found)


def _add_streamed(model: StreamedModel, layers: nn.ModuleList, batches: Sequence[tuple[Batch, "_Sums"]]) -> None:
    """Group after group of batches, each through all layers."""
    offload = ActivationOffload(model.device, (*model.model.parameters(), *model.model.buffers()))
    waiting = deque(batches)
    with progress_display("comparing the layers", len(batches) * len(layers)) as advance:
        while waiting:
            group: list[tuple[ForwardPass, ObservedBatch, _Sums]] = []
            with (
                _recorded_states(layers, torch.device("cpu")) as states,
                one_layer_at_a_time(model.model, layers, offload) as held,
            ):
                while waiting and _final_bytes(states, len(layers)) < STATE_BYTES:
                    batch, sums = waiting.popleft()
                    inputs, observed = split_mask(batch, model.device)
                    group.append((held.start(inputs), observed, sums))
                for number in range(len(layers)):
                    held.check(number)
                    with model.layer(number, number + 1 if number + 1 < len(layers) else None):
                        for forward_pass, _, _ in group:
                            forward_pass.resume(forward_pass.output())
                    advance(len(group))
            for forward_pass, observed, sums in group:
                sums.add(states[forward_pass], observed)


def _final_bytes(states: dict[Thread, States], layers: int) -> int:
    """What the states of batches that wait before the first layer will take when they have passed the last."""
    return (layers + 1) * sum(first.nbytes for first, *_ in states.values())


@contextmanager
def _recorded_states(layers: nn.ModuleList, device: torch.device | None = None) -> Iterator[dict[Thread, States]]:
    """Inside, every forward pass leaves its hidden states, by the thread that it runs in; on `device`, or where they are."""
    states: dict[Thread, States] = {}

    def record(state: torch.Tensor) -> None:
        # A copy: families add to their residual stream in place
        states.setdefault(current_thread(), []).append(
            state.detach().flatten(2).flatten(0, 1).to(device or state.device, copy=True)
        )

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record(hidden_states_of(args[:1] or kwargs.get("hidden_states")))

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda layer, args, output: record(hidden_states_of(output))))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


class _Sums:
    """Of one source, on the model's device until `reduced`."""

    def __init__(self, layers: int, device: torch.device) -> None:
        states = layers + 1
        self.layers, self.device = layers, device
        self.cosine: dict[Part, torch.Tensor] = {part: torch.zeros(layers).double().to(device) for part in PARTS}
        self.angle: dict[Part, torch.Tensor] = {part: torch.zeros(states, states).double().to(device) for part in PARTS}
        self.tokens: TokenCounts = {part: 0 for part in PARTS}

    def add(self, states: States, batch: ObservedBatch) -> None:
        if len(states) != self.layers + 1:
            raise PollardError(
                f"This model calls its {self.layers} decoder layers {len(states) - 1} times in a forward pass: what one of them "
                "changes cannot be told. Choose the layers by dev_loss, or name them (pruning.layers=[0, 1, …]).",
                code="layers.out-of-order",
            )
        size = max(1, CHUNK_BYTES // (8 * sum(state.shape[1] for state in states)))
        for part in PARTS:
            rows = getattr(batch, part).nonzero().flatten().cpu()
            self.tokens[part] += len(rows)
            for chunk in rows.split(size):
                chosen = [state[chunk.to(state.device)].to(self.device).double() for state in states]
                unit_TNH = nn.functional.normalize(torch.stack(chosen, dim=1), dim=-1)
                cosine_TNN = (unit_TNH @ unit_TNH.mT).clamp(-1, 1)
                self.cosine[part] += cosine_TNN.diagonal(1, dim1=1, dim2=2).sum(0)
                self.angle[part] += cosine_TNN.arccos().sum(0).fill_diagonal_(0) / torch.pi

    def reduced(self, share: float) -> SourceSimilarities:
        """The totals over all ranks, on CPU. Every rank must call it."""
        every = gather((_on_cpu(self.cosine), _on_cpu(self.angle), self.tokens))
        cosine, angle = _totals([mine for mine, _, _ in every]), _totals([mine for _, mine, _ in every])
        return SourceSimilarities(cosine, angle, {part: sum(counts[part] for _, _, counts in every) for part in PARTS}, share)


def _on_cpu(sums: dict[Part, torch.Tensor]) -> dict[Part, torch.Tensor]:
    return {part: tensor.cpu() for part, tensor in sums.items()}


def _totals(ranks: Sequence[dict[Part, torch.Tensor]]) -> dict[Part, torch.Tensor]:
    return {part: torch.stack([sums[part] for sums in ranks]).sum(0) for part in PARTS}


def _check(sources: Sequence[SourceSimilarities]) -> None:
    if not any(count for source in sources for count in source.tokens.values()):
        raise PollardError("The layers were compared on no tokens: the batches are empty.", code="calibration.no-tokens")
    if not all(sums.isfinite().all() for source in sources for sums in source.angle.values()):
        raise PollardError("The hidden states are not finite. Try model.dtype=float32.", code="calibration.not-finite")
