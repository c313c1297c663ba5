"""One pass over all batches, layer by layer: one decoder layer's weights are there at a time.

Every rank walks through all layers with its own batches; a rank without any still takes part in what ranks do together.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from transformers import PreTrainedModel

from toolkit.calibration.observer import Batch, Mask, Observer, inputs_and_mask
from toolkit.calibration.reconstruction import ProgressiveSearch
from toolkit.moe import (
    ActivationOffload,
    BlockActivations,
    ForwardPass,
    StreamedModel,
    blocks_by_layer,
    find_blocks,
    layers_of,
    observing,
    one_layer_at_a_time,
)
from toolkit.runtime.progress import progress


class Turn(NamedTuple):
    """A batch, and who looks at it."""

    forward_pass: ForwardPass
    mask: Mask
    watchers: Sequence[Observer]


def layerwise_pass(
    model: PreTrainedModel | StreamedModel,
    sources: Sequence[tuple[Sequence[Batch], Sequence[Observer]]],
    search: ProgressiveSearch | None = None,
) -> list[list[Mask]]:
    """Each source's watchers see what they see in `watch`, block after block instead of batch after batch; returns per
    source every batch's mask. `search` goes along with a second forward pass per batch, of the model as pruned so far."""
    whole = model.model if isinstance(model, StreamedModel) else model
    blocks = find_blocks(whole)
    layers = layers_of(whole, blocks)[1]
    looking: list[Observer] = []

    def show(seen: BlockActivations) -> None:
        for watcher in looking:
            watcher(seen)

    turns: list[Turn] = []
    masks: list[list[Mask]] = [[] for _ in sources]
    offload = (
        ActivationOffload(model.device, (*whole.parameters(), *whole.buffers())) if isinstance(model, StreamedModel) else None
    )
    with one_layer_at_a_time(whole, layers, offload) as at:
        for number, (batches, watchers) in enumerate(sources):
            for batch in batches:
                inputs, mask = inputs_and_mask(batch, model.device)
                masks[number].append(mask)
                turns.append(Turn(at.start(inputs), mask, watchers))
                if search:
                    search.follow(at.start(inputs))
        steps = list(enumerate(blocks_by_layer(blocks, layers)))
        for number, inside in progress(steps, "watching the experts, layer by layer"):
            at.check(number)
            with model.layer(number) if isinstance(model, StreamedModel) else nullcontext():
                if search:
                    search.enter(inside)
                with observing(whole, show):
                    for i, turn in enumerate(turns):
                        looking[:] = [*turn.watchers, *([search] if search else [])]
                        for watcher in looking:
                            watcher.begin(turn.mask)
                        turn.forward_pass.resume(turn.forward_pass.output())
                        if search:
                            looking[:] = [search]
                            search.compare(i)
                if search:
                    search.leave()
    return masks
