"""One pass of the original model over the calibration batches.

Shape legend: B sequences, S positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from toolkit.calibration.channel_gradients import observe_gradients
from toolkit.calibration.channels import ChannelObserver, channel_facts
from toolkit.calibration.observer import Observer, StatisticsObserver
from toolkit.calibration.passes import ObservedSource, layerwise_pass, observe
from toolkit.calibration.reconstruction import LayerwiseSearch, ProgressiveSearch, check_progressive_keep
from toolkit.cuts.statistics import (
    PARTS,
    BlockSearchResult,
    BlockStatistics,
    ExpertStatistics,
    SearchMode,
    StatisticsFacts,
    TokenCounts,
    mix,
)
from toolkit.moe import (
    Batch,
    ChannelGroup,
    MoEBlock,
    StreamedModel,
    channel_groups,
    expert_width,
    find_blocks,
    is_partitioned,
    open_layerwise,
    override_top_k,
)
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

Channels = bool | Literal["gradients"]


@dataclass(frozen=True)
class CalibrationSource:
    """One source of a mix: this rank's batches, and its weight against the others'."""

    name: str
    batches: Sequence[Batch]
    weight: float = 1.0


def calibrate(
    model: PreTrainedModel | StreamedModel | str | Path,
    batches: Iterable[Batch],
    reconstruction: bool | SearchMode = False,
    keep: int | None = None,
    experts_per_token: int | None = None,
    channels: Channels = False,
) -> ExpertStatistics:
    """Observes the experts of `model` over `batches`: of a loaded model, or of the checkpoint at a path, of which one decoder
    layer at a time is in memory (where it must be loaded whole, a printed line gives the reason). The statistics are the
    same.

    Each batch holds `input_ids` [B, S], `attention_mask` [B, S] and optionally `completion_mask` [B, S]; without one
    every token counts as completion. Padding never counts. Under a launcher each rank passes its own batches and all
    get the statistics of all. `reconstruction` also searches the subsets of criterion `reconstruction`: "layerwise"
    (or True) for every `keep` at once, "progressive" for the given `keep`. Its loss is summed over batches as they are.
    `experts_per_token` is how many experts the pruned model will activate, where that is fewer than now: the model runs
    with that many, so that criteria score what it will do. `channels` also observes the channels of the experts, for plans
    that narrow them: [E, W] numbers per block; "gradients" does so in a backward pass as well, for the criteria that need
    one. It has the whole model in memory (toolkit/calibration/channel_gradients.py says what else).

    Raises PollardError for a dense model, for no tokens at all, for sums that are not finite (a model that overflows in
    its dtype), for numbers that the model cannot serve, for a router that the search cannot call, and with
    `channels` for a family whose experts cannot be narrowed.
    """
    return calibrate_mix(model, [CalibrationSource("", list(batches))], reconstruction, keep, experts_per_token, channels)


@torch.no_grad()
def calibrate_mix(
    model: PreTrainedModel | StreamedModel | str | Path,
    sources: Sequence[CalibrationSource],
    reconstruction: bool | SearchMode = False,
    keep: int | None = None,
    experts_per_token: int | None = None,
    channels: Channels = False,
) -> ExpertStatistics:
    """`calibrate` over several sources in one pass: statistics in which each counts by its weight. Subsets are searched on
    the batches of all sources together."""
    mode: SearchMode | Literal[False] = "layerwise" if reconstruction is True else reconstruction
    if mode not in (False, "layerwise", "progressive"):
        raise PollardError(f"Reconstruction is searched layerwise or progressive, not {mode!r}.", code="calibration.mode")
    if isinstance(model, str | Path):
        why_whole = "gradients go backward through all of its layers" if channels == "gradients" else None
        model = open_layerwise(str(model), why_whole)
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    _check_channels(channels, model)
    now = find_blocks(whole)[0].experts_per_token
    if experts_per_token is not None and not 1 <= experts_per_token <= now:
        raise PollardError(f"experts_per_token is {experts_per_token}: give 1…{now}.", code="calibration.experts-per-token")
    with override_top_k(whole, experts_per_token):
        groups = channel_groups(whole, expert_width(whole)) if channels else []
        parts, results = _observe_sources(model, [source.batches for source in sources], groups, mode, keep)
        if channels == "gradients":
            for part, source in zip(parts, sources, strict=True):
                part.vectors |= observe_gradients(whole, progress(source.batches, "gradients of the channels"), groups)
                _check_finite(part.vectors)
    statistics = mix(parts, [source.name for source in sources], [source.weight for source in sources])
    statistics.about.model = whole.config._name_or_path
    if mode:
        statistics.about.reconstruction = {mode: results}
    return statistics


def _check_channels(channels: Channels, model: PreTrainedModel | StreamedModel) -> None:
    """Raises PollardError where they cannot be observed in a model that is held so, and for another word."""
    if channels not in (False, True, "gradients"):
        raise PollardError(f'Channels are observed (True) or "gradients" as well, not {channels!r}.', code="calibration.channels")
    if channels == "gradients" and isinstance(model, StreamedModel):
        raise PollardError(
            "The criteria taylor and fisher need gradients, which go backward through the whole model, and one layer of it is in "
            "memory at a time. Load it whole (toolkit.calibrate does, with a path), or choose width_criterion energy.",
            code="calibration.gradients-need-whole-model",
        )
    if channels and isinstance(model, PreTrainedModel) and is_partitioned(model):
        raise PollardError(
            "The channels of experts are found by the shapes of their weights, and this model's are in parts on all ranks "
            "(ZeRO-3). Say model.placement=copies or spread.",
            code="calibration.channels-in-parts",
        )


def _observe_sources(
    model: PreTrainedModel | StreamedModel,
    sources: Sequence[Sequence[Batch]],
    groups: Sequence[ChannelGroup],
    mode: SearchMode | Literal[False],
    keep: int | None,
) -> tuple[list[ExpertStatistics], dict[str, BlockSearchResult]]:
    """The statistics of each source, and per block what a search has found."""
    blocks = find_blocks(model.model if isinstance(model, StreamedModel) else model)
    layerwise = LayerwiseSearch(blocks) if mode == "layerwise" else None
    progressive = None
    if mode == "progressive":
        progressive = ProgressiveSearch(check_progressive_keep(keep, blocks[0].expert_count, blocks[0].experts_per_token))
    sums: list[list[StatisticsObserver | ChannelObserver]] = [
        [StatisticsObserver(blocks), *([ChannelObserver(groups)] if groups else [])] for _ in sources
    ]
    observers: list[list[Observer]] = [[*mine, *([layerwise] if layerwise else [])] for mine in sums]
    if progressive or isinstance(model, StreamedModel):
        counts = layerwise_pass(model, [ObservedSource(*pair) for pair in zip(sources, observers, strict=True)], progressive)
    else:
        counts = [
            observe(model, progress(batches, "observing the experts"), each)
            for batches, each in zip(sources, observers, strict=True)
        ]
    statistics = [_reduced(blocks, groups, mine, count) for mine, count in zip(sums, counts, strict=True)]
    results = layerwise.results() if layerwise else progressive.results if progressive else {}
    return statistics, results


def _reduced(
    blocks: Sequence[MoEBlock],
    groups: Sequence[ChannelGroup],
    observers: Sequence[StatisticsObserver | ChannelObserver],
    counts: TokenCounts,
) -> ExpertStatistics:
    """Over all ranks."""
    tokens: TokenCounts = {part: sum(gather(counts[part])) for part in PARTS}
    vectors = {name: vector for observer in observers for name, vector in observer.reduced().items()}
    if not sum(tokens.values()):
        raise PollardError("Calibration saw no tokens: the batches are empty.", code="calibration.no-tokens")
    _check_finite(vectors)
    facts = {
        block.name: BlockStatistics(block.expert_count, block.experts_per_token, block.groups or 1, tokens) for block in blocks
    }
    return ExpertStatistics(vectors, StatisticsFacts(facts, channels=channel_facts(groups)))


def _check_finite(vectors: Mapping[str, torch.Tensor]) -> None:
    broken = [name for name, vector in vectors.items() if not vector.isfinite().all()]
    if broken:
        raise PollardError(
            f"The experts' outputs are not finite ({broken[0]} and {len(broken) - 1} more). Try model.dtype=float32.",
            code="calibration.not-finite",
        )
