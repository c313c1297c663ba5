"""Progressive mode of the reconstruction search: layer by layer, each block chosen for what the pruned blocks before it
really pass on, against the original model's output on its own inputs.

One walk through the layers per `keep`; two hidden states per token are kept, the original's and the pruned model's.

Shape legend: T tokens, B sequences, S positions, H hidden size.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.calibration.reconstruction import BlockSearch
from toolkit.errors import PollardError
from toolkit.moe import LayerCalls, Seen, find_blocks, restricted, watching


def progressive_search(
    model: PreTrainedModel, calls: LayerCalls, masks: list[torch.Tensor], keep: int
) -> dict[str, dict[str, Any]]:
    """Per block what was found for `keep` experts; `masks` says per batch which flattened tokens [T] are real.

    Every rank brings its own batches and must call it.
    """
    by_layer = {calls.number_of(block): block for block in find_blocks(model)}
    original, pruned = list(calls.inputs_BSH), list(calls.inputs_BSH)
    found: dict[str, dict[str, Any]] = {}
    latest: list[Seen] = []
    for number in range(max(by_layer) + 1):
        block = by_layer.get(number)
        search = BlockSearch(block) if block else None
        with watching(model, latest.append):
            for batch, real_T in enumerate(masks):
                original[batch] = calls.run(number, batch, original[batch])
                if search:
                    target_TH = latest.pop().routed_TH
                    calls.run(number, batch, pruned[batch])
                    search.add(latest.pop(), real_T.nonzero().flatten(), target_TH)
        if block and search:
            found[block.name] = search.found([keep])
            with restricted(block, found[block.name]["keep"][str(keep)]["kept"]):
                pruned = [calls.run(number, batch, hidden) for batch, hidden in enumerate(pruned)]
        else:
            pruned = [calls.run(number, batch, hidden) for batch, hidden in enumerate(pruned)]
    return found


def check_keep(keep: int | None, experts: int, experts_per_token: int) -> int:
    """`keep`, if it makes sense for progressive mode; raises PollardError."""
    if keep is None or not experts_per_token <= keep <= experts:
        raise PollardError(
            f"Progressive reconstruction is one pass per number of kept experts: say keep={experts_per_token}…{experts} "
            f"(given: {keep})."
        )
    return keep
