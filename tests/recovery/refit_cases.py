"""Batches and cut models for the tests of refit, and of ranks that refit together."""

import copy

import torch
from drawn_plan import drawn_plan
from transformers import PreTrainedModel

from toolkit.cuts import apply_plan


def drawn_batches(sequences: int = 60, size: int = 10, length: int = 24, seed: int = 5) -> list[dict[str, torch.Tensor]]:
    """Random tokens; every third sequence is padded."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(0, sequences, size):
        mask = torch.ones(size, length).long()
        mask[::3, length // 2 :] = 0
        batches.append({"input_ids": torch.randint(3, 62, (size, length), generator=draw), "attention_mask": mask})
    return batches


def cut_copy(model: PreTrainedModel, **cuts: object) -> PreTrainedModel:
    """`model` without half of its experts, or with the cuts of `drawn_plan`."""
    return apply_plan(copy.deepcopy(model), drawn_plan(model, **(cuts or {"keep": 4})))  # type: ignore[arg-type]
