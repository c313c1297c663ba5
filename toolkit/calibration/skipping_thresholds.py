"""The thresholds of dynamic skipping: per block β, from what the routers of a model say on the calibration tokens.

Two experts per token: g2 / g1 of every token; β is their median, so that half the tokens skip their second expert (NAEE, as
its code stores it), or another quantile. More: for every token and every i < K the share of the gate weights beyond the i
largest; a token skips as many experts as it has such shares up to β, so the same quantile of all of them skips that part
of all experts after the first.

Shape legend: T tokens, K experts per token.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from toolkit.calibration.calibrate import open_layerwise
from toolkit.calibration.observer import Batch, Mask, observe
from toolkit.calibration.passes import layerwise_pass
from toolkit.moe import BlockActivations, StreamedModel, find_blocks
from toolkit.moe.expert_skipping import Skipping, gate_ratios
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

SkippingRule = Literal["median"] | float


class GateRatioObserver:
    """A watcher that keeps what β is compared with: K − 1 numbers per token and block, in the router's own precision."""

    def __init__(self) -> None:
        self.found: dict[str, list[torch.Tensor]] = {}
        self.rows = torch.zeros(0, dtype=torch.bool)

    def begin(self, mask: Mask) -> None:
        self.rows = mask["prompt"] | mask["completion"]

    def __call__(self, seen: BlockActivations) -> None:
        found = gate_ratios(seen.gate_TK[self.rows.to(seen.gate_TK.device)])
        precise = seen.gate_TK.dtype == torch.float64
        self.found.setdefault(seen.block, []).append(found.to("cpu", torch.float64 if precise else torch.float32))

    def of(self, block: str) -> torch.Tensor:
        """All tokens' of all ranks [T, K − 1]; a token without any gate weight has none."""
        mine = self.found.pop(block, [])
        every = [part for part in gather(torch.cat(mine) if mine else None) if part is not None]
        together = torch.cat(every).double() if every else torch.zeros(0, 1, dtype=torch.float64)
        return together[together.isfinite().all(1)]


def quantile(values: torch.Tensor, share: float) -> float:
    """Between the two nearest values, linearly: at 0.5 the mean of the two in the middle. 0 where there are none."""
    values = values.flatten().sort().values
    if not len(values):
        return 0.0
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (values[high] - values[low]) * (place - low))


@torch.no_grad()
def skipping_thresholds(
    model: PreTrainedModel | StreamedModel | str | Path,
    batches: Iterable[Batch | Mapping[str, torch.Tensor]],
    rule: SkippingRule = "median",
) -> Skipping:
    """β of every block of `model`, or of the checkpoint at a path, watched over `batches` (both as for `calibrate`) without
    skipping; padding never counts.

    `rule`: "median", or the share of the experts after a token's first that are to be skipped. Under a launcher each rank
    passes its own batches and all get the thresholds of all. Raises PollardError for a model of one expert per token, and
    for no tokens.
    """
    if isinstance(model, str | Path):
        model = open_layerwise(str(model))
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    blocks, looking, mine = find_blocks(whole), GateRatioObserver(), list(batches)
    if blocks[0].experts_per_token < 2:
        raise PollardError("This model activates one expert per token: there is none to skip. Leave pruning.skipping out.")
    if isinstance(model, StreamedModel):
        masks: Sequence[Mask] = layerwise_pass(model, [(mine, [looking])])[0]
    else:
        masks = observe(model, progress(mine, "watching the routers"), [looking])
    tokens = sum(gather(sum(int((mask["prompt"] | mask["completion"]).sum()) for mask in masks)))
    if not tokens:
        raise PollardError("No tokens to find thresholds on: the batches are empty.")
    share = 0.5 if rule == "median" else rule
    thresholds = {block.name: quantile(looking.of(block.name), share) for block in blocks}
    return Skipping(rule=rule, experts_per_token=blocks[0].experts_per_token, tokens=tokens, blocks=thresholds)
