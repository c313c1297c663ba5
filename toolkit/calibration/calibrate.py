"""One pass of the original model over the calibration batches.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from toolkit.calibration.progressive import check_keep, progressive_search
from toolkit.calibration.reconstruction import Reconstruction
from toolkit.calibration.totals import Totals
from toolkit.distributed import device, gather
from toolkit.errors import PollardError
from toolkit.expert_statistics import ExpertStatistics
from toolkit.moe import MoEBlock, Seen, activating, find_blocks, load_model, recording_layers, watching

Batch = Mapping[str, torch.Tensor]
Mask = dict[str, torch.Tensor]  # "prompt" and "completion": which flattened tokens [T] of a batch are which


class Watcher(Protocol):
    """Something that wants to see what the experts do."""

    def begin(self, mask: Mask) -> None:
        """A batch begins."""

    def __call__(self, seen: Seen) -> None:
        """A block has worked on it."""


@torch.no_grad()
def calibrate(
    model: PreTrainedModel | str | Path,
    batches: Iterable[Batch],
    reconstruction: bool | Literal["layerwise", "progressive"] = False,
    keep: int | None = None,
    experts_per_token: int | None = None,
) -> ExpertStatistics:
    """Watches the experts of `model` (or of the checkpoint at that path) over `batches`.

    Each batch holds `input_ids` [B, S], `attention_mask` [B, S] and optionally `completion_mask` [B, S]; without one
    every token counts as completion. Padding never counts. Under a launcher each rank passes its own batches and all
    get the statistics of all. `reconstruction` also searches the subsets of criterion `reconstruction`: "layerwise"
    (or True) for every `keep` at once, "progressive" for the given `keep`. Its loss is summed over batches as they are.
    `experts_per_token` is how many experts the pruned model will activate, where that is fewer than now: the model runs
    with that many, so that criteria score what it will do.

    Raises PollardError for a dense model, for no tokens at all, for sums that are not finite (a model that overflows in
    its dtype), for numbers that the model cannot serve, and for a router that the search cannot call.
    """
    mode = "layerwise" if reconstruction is True else reconstruction
    if mode not in (False, "layerwise", "progressive"):
        raise PollardError(f"Reconstruction is searched layerwise or progressive, not {mode!r}.")
    if isinstance(model, str | Path):
        model = load_model(str(model), device=device())
    model.eval()
    now = find_blocks(model)[0].experts_per_token
    if experts_per_token is not None and not 1 <= experts_per_token <= now:
        raise PollardError(f"experts_per_token is {experts_per_token}: give 1…{now}.")
    with activating(model, experts_per_token):
        return _statistics(model, find_blocks(model), batches, mode, keep)


def _statistics(
    model: PreTrainedModel, blocks: list[MoEBlock], batches: Iterable[Batch], mode: str | bool, keep: int | None
) -> ExpertStatistics:
    totals, search = Totals(blocks), Reconstruction(blocks)
    watchers: list[Watcher] = [totals, search] if mode == "layerwise" else [totals]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        if mode == "progressive":
            keep = check_keep(keep, blocks[0].expert_count, blocks[0].experts_per_token)
            calls = stack.enter_context(recording_layers(model, blocks))
        masks = watch(model, batches, watchers)
    tokens = {part: sum(gather(sum(int(mask[part].sum()) for mask in masks))) for part in ("prompt", "completion")}
    vectors = totals.reduced()
    if not sum(tokens.values()):
        raise PollardError("Calibration saw no tokens: the batches are empty.")
    broken = [name for name, vector in vectors.items() if not vector.isfinite().all()]
    if broken:
        raise PollardError(
            f"The experts' outputs are not finite ({broken[0]} and {len(broken) - 1} more). Try model.dtype=float32."
        )
    statistics, entered = {name.split("/", 1)[1] for name in vectors}, {name.split("/", 1)[0] for name in vectors}
    for block in blocks:  # one that no token entered (Ernie 4.5 VL's experts for images) has unobserved experts only
        if block.name not in entered:
            vectors |= {f"{block.name}/{name}": torch.zeros(block.expert_count).double() for name in statistics}
    if mode == "layerwise":
        found = search.found()
    elif mode == "progressive":
        found = progressive_search(model, calls, [mask["prompt"] | mask["completion"] for mask in masks], keep or 0)
    per_block = {
        block.name: {
            "experts": block.expert_count, "experts_per_token": block.experts_per_token,
            "groups": block.groups or 1, "tokens": tokens,
        }
        for block in blocks
    }  # fmt: skip
    about: dict[str, Any] = {"model": model.config._name_or_path, "blocks": per_block}
    return ExpertStatistics(vectors, about | ({"reconstruction": {mode: found}} if mode else {}))


def watch(model: PreTrainedModel, batches: Iterable[Batch], watchers: Sequence[Watcher]) -> list[Mask]:
    """Runs the model over the batches while all watchers look; returns every batch's mask."""
    masks = []

    def show(seen: Seen) -> None:
        for watcher in watchers:
            watcher(seen)

    with watching(model, show):
        for batch in batches:
            there = {name: tensor.to(model.device) for name, tensor in batch.items()}
            real = there["attention_mask"].bool()
            completion = there["completion_mask"].bool() & real if "completion_mask" in there else real
            mask = {"prompt": (real & ~completion).flatten(), "completion": completion.flatten()}
            for watcher in watchers:
                watcher.begin(mask)
            # The base model: logits over the vocabulary are not needed
            model.base_model(there["input_ids"], attention_mask=there["attention_mask"], use_cache=False)
            masks.append(mask)
    return masks
