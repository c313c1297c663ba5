"""From token lists to padded tensors. Shape legend: B sequences, S positions."""

from collections.abc import Sequence

import torch

from toolkit.tasks.prompts import Encoded


def padded_batches(encoded: Sequence[Encoded], batch_size: int, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches of `input_ids`, `attention_mask` and `completion_mask`, each [B, S], in the given order."""
    batches = []
    for start in range(0, len(encoded), batch_size):
        chunk = encoded[start : start + batch_size]
        length = max(len(e.input_ids) for e in chunk)
        rows = [[*e.input_ids, *[pad_token_id] * (length - len(e.input_ids))] for e in chunk]
        real = [[1] * len(e.input_ids) + [0] * (length - len(e.input_ids)) for e in chunk]
        completion = [e.completion_mask + [0] * (length - len(e.input_ids)) for e in chunk]
        names = ("input_ids", "attention_mask", "completion_mask")
        batches.append({name: torch.tensor(values) for name, values in zip(names, (rows, real, completion), strict=True)})
    return batches
