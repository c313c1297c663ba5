"""One pass of the original model over the calibration batches.

Shape legend: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from toolkit.calibration.totals import Totals
from toolkit.distributed import device, gather
from toolkit.errors import PollardError
from toolkit.expert_statistics import ExpertStatistics
from toolkit.moe import find_blocks, load_model, watching


@torch.no_grad()
def calibrate(model: PreTrainedModel | str | Path, batches: Iterable[Mapping[str, torch.Tensor]]) -> ExpertStatistics:
    """Watches the experts of `model` (or of the checkpoint at that path) over `batches`.

    Each batch holds `input_ids` [B, S], `attention_mask` [B, S] and optionally `completion_mask` [B, S]; without one
    every token counts as completion. Padding never counts. Under a launcher each rank passes its own batches and all
    get the statistics of all. Raises PollardError for a dense model, for no tokens at all and for sums that are not
    finite (a model that overflows in its dtype).
    """
    if isinstance(model, str | Path):
        model = load_model(str(model), device=device())
    model.eval()
    blocks = find_blocks(model)
    totals = Totals(blocks)
    tokens = {"prompt": 0, "completion": 0}
    with watching(model, totals):
        for batch in batches:
            there = {name: tensor.to(model.device) for name, tensor in batch.items()}
            real = there["attention_mask"].bool()
            completion = there["completion_mask"].bool() & real if "completion_mask" in there else real
            mask = {"prompt": (real & ~completion).flatten(), "completion": completion.flatten()}
            totals.begin(mask)
            # The base model: logits over the vocabulary are not needed
            model.base_model(there["input_ids"], attention_mask=there["attention_mask"], use_cache=False)
            for part in mask:
                tokens[part] += int(mask[part].sum())
    vectors = totals.reduced()
    tokens = {part: sum(found[part] for found in gather(tokens)) for part in tokens}
    if not sum(tokens.values()):
        raise PollardError("Calibration saw no tokens: the batches are empty.")
    broken = [name for name, vector in vectors.items() if not vector.isfinite().all()]
    if broken:
        raise PollardError(
            f"The experts' outputs are not finite ({broken[0]} and {len(broken) - 1} more). Try model.dtype=float32."
        )
    per_block = {
        block.name: {"experts": block.expert_count, "experts_per_token": block.experts_per_token, "tokens": tokens}
        for block in blocks
    }
    return ExpertStatistics(vectors, {"model": model.config._name_or_path, "blocks": per_block})
