"""One pass of the original model over the calibration batches.

Shape legend: B sequences, S positions.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from toolkit.calibration.observer import Batch, Mask, Observer, StatisticsObserver, observe
from toolkit.calibration.passes import layerwise_pass
from toolkit.calibration.reconstruction import LayerwiseSearch, ProgressiveSearch, check_progressive_keep
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.moe import CannotStream, MoEBlock, StreamedModel, find_blocks, load_model, load_thresholds, override_top_k
from toolkit.runtime.distributed import device, gather, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

Search = bool | Literal["layerwise", "progressive"]


def calibrate(
    model: PreTrainedModel | StreamedModel | str | Path,
    batches: Iterable[Batch],
    reconstruction: Search = False,
    keep: int | None = None,
    experts_per_token: int | None = None,
) -> ExpertStatistics:
    """Watches the experts of `model` over `batches`: of a loaded model, or of the checkpoint at a path, of which one decoder
    layer at a time is in memory (where it must be loaded whole, a line says why). The statistics are the same.

    Each batch holds `input_ids` [B, S], `attention_mask` [B, S] and optionally `completion_mask` [B, S]; without one
    every token counts as completion. Padding never counts. Under a launcher each rank passes its own batches and all
    get the statistics of all. `reconstruction` also searches the subsets of criterion `reconstruction`: "layerwise"
    (or True) for every `keep` at once, "progressive" for the given `keep`. Its loss is summed over batches as they are.
    `experts_per_token` is how many experts the pruned model will activate, where that is fewer than now: the model runs
    with that many, so that criteria score what it will do.

    Raises PollardError for a dense model, for no tokens at all, for sums that are not finite (a model that overflows in
    its dtype), for numbers that the model cannot serve, and for a router that the search cannot call.
    """
    return calibrate_sources(model, [batches], reconstruction, keep, experts_per_token)[0]


@torch.no_grad()
def calibrate_sources(
    model: PreTrainedModel | StreamedModel | str | Path,
    sources: Sequence[Iterable[Batch]],
    reconstruction: Search = False,
    keep: int | None = None,
    experts_per_token: int | None = None,
) -> list[ExpertStatistics]:
    """`calibrate` over several sources in one pass: the statistics of each. Subsets are searched on the batches of all
    together, and every result says what was found."""
    mode = "layerwise" if reconstruction is True else reconstruction
    if mode not in (False, "layerwise", "progressive"):
        raise PollardError(f"Reconstruction is searched layerwise or progressive, not {mode!r}.")
    if isinstance(model, str | Path):
        model = open_layerwise(str(model))
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    now = find_blocks(whole)[0].experts_per_token
    if experts_per_token is not None and not 1 <= experts_per_token <= now:
        raise PollardError(f"experts_per_token is {experts_per_token}: give 1…{now}.")
    with override_top_k(whole, experts_per_token):
        return _statistics(model, whole, [list(batches) for batches in sources], mode, keep)


def open_layerwise(path: str) -> StreamedModel | PreTrainedModel:
    """The checkpoint layer by layer; loaded whole where it must be, for a reason that is said."""
    if load_thresholds(path):
        say(f"  {path} is watched without skipping experts, although it has a skipping.json")
    try:
        return StreamedModel(path, device=device())
    except CannotStream as reason:
        say(f"  {path} is loaded whole: {reason}")
        return load_model(path, device=device(), skipping=False)


def _statistics(
    model: PreTrainedModel | StreamedModel, whole: PreTrainedModel, sources: list[list[Batch]], mode: str | bool, keep: int | None
) -> list[ExpertStatistics]:
    blocks = find_blocks(whole)
    totals, search = [StatisticsObserver(blocks) for _ in sources], LayerwiseSearch(blocks)
    watched: list[tuple[list[Batch], list[Observer]]] = [
        (batches, [mine, search] if mode == "layerwise" else [mine]) for batches, mine in zip(sources, totals, strict=True)
    ]
    found: dict[str, Any] = {}
    if mode == "progressive":
        progressive = ProgressiveSearch(check_progressive_keep(keep, blocks[0].expert_count, blocks[0].experts_per_token))
        masks, found = layerwise_pass(model, watched, progressive), progressive.found
    elif isinstance(model, StreamedModel):
        masks = layerwise_pass(model, watched)
    else:
        masks = [observe(model, progress(batches, "watching the experts"), watchers) for batches, watchers in watched]
    statistics = [_reduced(blocks, mine, seen) for mine, seen in zip(totals, masks, strict=True)]
    if mode == "layerwise":
        found = search.found()
    for one in statistics:
        one.about |= {"model": whole.config._name_or_path} | ({"reconstruction": {mode: found}} if mode else {})
    return statistics


def _reduced(blocks: list[MoEBlock], totals: StatisticsObserver, masks: list[Mask]) -> ExpertStatistics:
    """Over all ranks."""
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
    per_block = {
        block.name: {
            "experts": block.expert_count, "experts_per_token": block.experts_per_token,
            "groups": block.groups or 1, "tokens": tokens,
        }
        for block in blocks
    }  # fmt: skip
    return ExpertStatistics(vectors, {"blocks": per_block})
