"""The thresholds of dynamic skipping: per block β, from the gate weights of a model on the calibration tokens.

Two experts per token: g2 / g1 of every token; β is their median, so that half the tokens skip their second expert (NAEE, as
its code stores it), or another quantile. More: for every token and every i < K the share of the gate weights beyond the i
largest; a token skips as many experts as it has such shares up to β, so the same quantile of all of them skips that part
of all experts after the first.

Shape legend: T tokens, K experts per token.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from toolkit.calibration.observer import Observer
from toolkit.calibration.passes import ObservedSource, layerwise_pass, observe
from toolkit.moe import Batch, BlockActivations, ObservedBatch, StreamedModel, find_blocks, open_layerwise
from toolkit.moe.expert_skipping import Skipping
from toolkit.moe.skipped_pairs import gate_ratios
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

SkippingRule = Literal["median"] | float


class GateRatioObserver(Observer):
    """Collects what β is compared with: K − 1 numbers per token and block, in the router's own precision."""

    def __init__(self) -> None:
        self.batches: dict[str, list[torch.Tensor]] = {}

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        gate_TK = activations.gate_TK
        precise = gate_TK.dtype == torch.float64
        ratios_TK = gate_ratios(gate_TK[batch.real.to(gate_TK.device)]).to("cpu", torch.float64 if precise else torch.float32)
        self.batches.setdefault(activations.block, []).append(ratios_TK)

    def take(self, block: str) -> torch.Tensor:
        """The ratios of all tokens of all ranks [T, K − 1], which are then forgotten here; a token without any gate weight
        has none. Every rank must call it."""
        mine = self.batches.pop(block, [])
        every_rank = [part for part in gather(torch.cat(mine) if mine else None) if part is not None]
        ratios_TK = torch.cat(every_rank).double() if every_rank else torch.zeros(0, 1, dtype=torch.float64)
        return ratios_TK[ratios_TK.isfinite().all(1)]


def quantile(values: torch.Tensor, share: float) -> float:
    """Interpolated linearly between the two nearest values: at 0.5 the mean of the two in the middle. 0 without values."""
    values = values.flatten().sort().values
    if not len(values):
        return 0.0
    position = share * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (values[high] - values[low]) * (position - low))


@torch.no_grad()
def skipping_thresholds(
    model: PreTrainedModel | StreamedModel | str | Path,
    batches: Iterable[Batch | Mapping[str, torch.Tensor]],
    rule: SkippingRule = "median",
) -> Skipping:
    """β of every block of `model`, or of the checkpoint at a path, observed over `batches` (both as for `calibrate`) without
    skipping; padding never counts.

    `rule`: "median", or the share of the experts after a token's first that are to be skipped. Under a launcher each rank
    passes its own batches and all get the thresholds of all. Raises PollardError for a model of one expert per token, and
    for no tokens.
    """
    if isinstance(model, str | Path):
        model = open_layerwise(str(model))
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    blocks, observer, local = find_blocks(whole), GateRatioObserver(), list(batches)
    if blocks[0].experts_per_token < 2:
        raise PollardError(
            "This model activates one expert per token: there is none to skip. Leave pruning.skipping out.",
            code="calibration.nothing-to-skip",
        )
    if isinstance(model, StreamedModel):
        counts = layerwise_pass(model, [ObservedSource(local, [observer])])[0]
    else:
        counts = observe(model, progress(local, "observing the routers"), [observer])
    tokens = sum(gather(sum(counts.values())))
    if not tokens:
        raise PollardError("No tokens to find thresholds on: the batches are empty.", code="calibration.no-tokens")
    share = 0.5 if rule == "median" else rule
    thresholds = {block.name: quantile(observer.take(block.name), share) for block in blocks}
    return Skipping(rule=rule, experts_per_token=blocks[0].experts_per_token, tokens=tokens, blocks=thresholds)
