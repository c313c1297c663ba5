"""One pass over all batches, with observers: of a whole model batch after batch, or layer by layer, so that the weights of
two decoder layers are in memory, one at work and one arriving (toolkit/moe/layers.py says how forward passes are held).

Under a launcher every rank has batches of its own and walks through all layers, also one without any: observers may take
part in what ranks do together.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.calibration.observer import Observer, ProgressiveObserver
from toolkit.cuts.statistics import PARTS, TokenCounts
from toolkit.moe import (
    ActivationOffload,
    Batch,
    BlockActivations,
    ChannelGroup,
    ForwardPass,
    LinearCall,
    ObservedBatch,
    StreamedModel,
    TokenRows,
    blocks_by_layer,
    find_blocks,
    layers_of,
    observing,
    observing_linears,
    one_layer_at_a_time,
    split_mask,
)
from toolkit.runtime.progress import progress


class ObservedSource(NamedTuple):
    """Batches, and their observers."""

    batches: Sequence[Batch]
    observers: Sequence[Observer]


class _Turn(NamedTuple):
    """One batch in a pass layer by layer."""

    batch: ObservedBatch
    observers: Sequence[Observer]
    original: ForwardPass
    pruned: ForwardPass | None  # of the model as a progressive search has pruned it so far


class _Dispatch:
    """Hands activations to the observers of the batch at work."""

    def __init__(self) -> None:
        self.observers: Sequence[Observer] = ()
        self.search: ProgressiveObserver | None = None

    def begin(self, batch: ObservedBatch, observers: Sequence[Observer], search: ProgressiveObserver | None = None) -> None:
        """`search`: what sees the batch in the model as pruned so far, where that is at work."""
        self.batch, self.observers, self.search = batch, observers, search

    def __call__(self, activations: BlockActivations) -> None:
        for observer in self.observers:
            observer.on_batch(activations, self.batch)
        if self.search:
            self.search.on_pruned_batch(activations, self.batch)

    def every_expert(self, block: str) -> TokenRows | None:
        """The rows of the batch at work, where someone wants the outputs of all experts of `block`."""
        wanted = any(observer.wants_every_expert(block) for observer in self.observers)
        if self.search:
            wanted = wanted or self.search.wants_every_expert_when_pruned(block)
        return self.batch.rows if wanted else None

    def on_linear(self, call: LinearCall) -> None:
        for observer in self.observers:
            observer.on_linear(call, self.batch)


@torch.no_grad()
def observe(model: PreTrainedModel, batches: Iterable[Batch], observers: Sequence[Observer]) -> TokenCounts:
    """Runs the model over the batches; returns how many tokens this rank's observers saw."""
    dispatch, blocks, counts = _Dispatch(), find_blocks(model), _no_tokens()
    for observer in observers:
        observer.on_layer_start(blocks)
    with (
        observing(model, dispatch, dispatch.every_expert),
        observing_linears(model, _mlps(observers), dispatch.on_linear),
    ):
        for batch in batches:
            inputs, observed = split_mask(batch, model.device)
            _count(counts, observed)
            dispatch.begin(observed, observers)
            # The base model: logits over the vocabulary are not needed
            model.base_model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
    for observer in observers:
        observer.on_layer_end()
    return counts


def layerwise_pass(
    model: PreTrainedModel | StreamedModel, sources: Sequence[ObservedSource], search: ProgressiveObserver | None = None
) -> list[TokenCounts]:
    """Runs the model layer after layer, each over the batches of all sources; returns how many tokens of each source this
    rank's observers saw. A progressive `search` observes too, with a second forward pass per batch."""
    whole = model.model if isinstance(model, StreamedModel) else model
    blocks = find_blocks(whole)
    layers = layers_of(whole, blocks)[1]
    observers = dict.fromkeys(observer for source in sources for observer in source.observers)
    if search:
        observers[search] = None
    offload = None
    if isinstance(model, StreamedModel):
        offload = ActivationOffload(model.device, (*whole.parameters(), *whole.buffers()))
    dispatch, turns, counts = _Dispatch(), [], [_no_tokens() for _ in sources]
    with one_layer_at_a_time(whole, layers, offload) as held:
        for source, count in zip(sources, counts, strict=True):
            for batch in source.batches:
                inputs, observed = split_mask(batch, model.device)
                _count(count, observed)
                original = held.start(inputs)
                turns.append(_Turn(observed, source.observers, original, held.start(inputs) if search else None))
        steps = list(enumerate(blocks_by_layer(blocks, layers)))
        for number, inside in progress(steps, "observing the experts, layer by layer"):
            held.check(number)
            following = layers[number + 1] if number + 1 < len(layers) else None
            with model.layer(layers[number], following) if isinstance(model, StreamedModel) else nullcontext():
                for observer in observers:
                    observer.on_layer_start(inside)
                with (
                    observing(whole, dispatch, dispatch.every_expert),
                    observing_linears(whole, _mlps(observers), dispatch.on_linear),
                ):
                    for turn in turns:
                        _run_layer(turn, dispatch, search, inside != [])
                for observer in observers:
                    observer.on_layer_end()
                if search:
                    with search.pruned_layer():
                        for turn in turns:
                            assert turn.pruned is not None
                            turn.pruned.resume(turn.pruned.output())
    return counts


def _run_layer(turn: _Turn, dispatch: _Dispatch, search: ProgressiveObserver | None, has_blocks: bool) -> None:
    observers = (*turn.observers, search) if search else turn.observers
    dispatch.begin(turn.batch, observers)
    turn.original.resume(turn.original.output())
    if search and turn.pruned and has_blocks:
        dispatch.begin(turn.batch, (), search)
        with search.undecided_layer():
            turn.pruned.output()  # it goes on only when the layer is decided
        turn.pruned.offload()


def _mlps(observers: Iterable[Observer]) -> list[ChannelGroup]:
    """Each once, however many observers want it."""
    return list({group.name: group for observer in observers for group in observer.mlps}.values())


def _no_tokens() -> TokenCounts:
    return {part: 0 for part in PARTS}


def _count(counts: TokenCounts, batch: ObservedBatch) -> None:
    for part in PARTS:
        counts[part] += len(getattr(batch.rows, part))
