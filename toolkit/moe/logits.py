"""The logits that matter, without those that do not: prompts and padding never reach the output layer.

Shape legend: N counted positions, V vocabulary, B sequences, S positions.
"""

from typing import Any

import torch


def logits_at(model: Any, inputs: dict[str, Any], counted_BS: torch.Tensor) -> torch.Tensor:
    """The logits [N, V] that predict the `counted` ones of positions 1 … S-1, example after example.

    Only positions that some example needs go through the output layer.
    """
    positions = counted_BS.any(0).nonzero().flatten()
    logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
    if logits.shape[1] != len(positions):  # a family that always answers for all
        logits = logits[:, positions]
    return logits[counted_BS[:, positions]]
