"""A batch without padding: its examples in as few rows as they need (`finetuning.packing`).

    a batch of 4, padded to the longest          the same batch, packed
    q q q q q a a a a a                          q q q q q a a a a a · · ·
    q q q a a · · · · ·                          q q q a a q q a a q q q a
    q q a a · · · · · ·
    q q q a · · · · · ·

A step learns from the same examples as without, in sums over the same tokens; so schedules, the teacher's cache and checkpoints
mean what they did. How a model tells the examples of a row apart, and whether it does: toolkit/moe/packing.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

IGNORED = -100  # the label that does not count in the loss
ROW = 512  # tokens of a row, or the longest example's: attention costs with a row's square
Batch = dict[str, Any]  # an example or a batch, as transformers hands it on


def rows_of(lengths: Sequence[int], longest: int) -> list[list[int]]:
    """The numbers of the examples in each row of at most `longest` tokens: in few rows, and these as even as can be."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    few = _first_fit(lengths, order, longest)
    even: list[list[int]] = [[] for _ in few]
    filled = [0] * len(few)
    for number in order:  # each into the emptiest row
        row = filled.index(min(filled))
        even[row].append(number)
        filled[row] += lengths[number]
    return even if max(filled) <= longest else few


def _first_fit(lengths: Sequence[int], order: Sequence[int], longest: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for number in order:
        row = next((r for r, free in enumerate(room) if free >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


class PaddingShares(NamedTuple):
    """Of all positions that are computed."""

    padded: float  # every example in a row of its own
    packed: float


def padding_shares(lengths: Sequence[int], batch_size: int) -> PaddingShares:
    """Of examples of these lengths, in batches in this order."""
    padded = packed = 0
    for first in range(0, len(lengths), batch_size):
        some = lengths[first : first + batch_size]
        rows = rows_of(some, max(ROW, *some))
        padded += len(some) * max(some)
        packed += len(rows) * max(sum(some[number] for number in row) for row in rows)
    return PaddingShares(1 - sum(lengths) / padded, 1 - sum(lengths) / packed)


class PackingCollator:
    """A collator of packed rows: `input_ids`, `labels`, `position_ids`. Examples of the dev slice have no column `example` and
    are padded as `collate` does it: the dev loss is the one it was."""

    def __init__(self, collate: Callable[[list[Batch]], Batch]) -> None:
        self.collate = collate

    def _rows(self, examples: list[Batch]) -> list[list[Batch]]:
        lengths = [len(example["input_ids"]) for example in examples]
        return [[examples[number] for number in row] for row in rows_of(lengths, max(ROW, *lengths))]

    def in_rows(self, examples: list[Batch]) -> list[Batch]:
        """The examples in the order in which they stand in the batch."""
        return [example for row in self._rows(examples) for example in row] if "example" in examples[0] else examples

    def __call__(self, examples: list[Batch]) -> Batch:
        if "example" not in examples[0]:
            return self.collate(examples)
        rows = self._rows(examples)
        batch = self.collate([joined(row) for row in rows])
        del batch["attention_mask"]  # with one, transformers does not look where positions begin anew
        batch["position_ids"] = torch.zeros_like(batch["input_ids"])
        for number, row in enumerate(rows):
            positions = torch.cat([torch.arange(len(example["input_ids"])) for example in row])
            batch["position_ids"][number, : len(positions)] = positions
        return batch


def joined(row: list[Batch]) -> Batch:
    """Examples as one. The first token of each is predicted from nothing, as in a row of its own."""
    return {
        "input_ids": [token for example in row for token in example["input_ids"]],
        "labels": [label for example in row for label in (IGNORED, *example["labels"][1:])],
    }
