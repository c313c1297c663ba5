"""What refit reads of a layer: the tokens of every batch, and the units whose weights are solved for them.

Shape legend: R tokens that count, N unknowns (channels of a group), H hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from toolkit.moe.residual_writers import ResidualWriter, WriterInputs
from toolkit.runtime.distributed import sum_over_ranks

GROUP_CHANNELS = 8192  # of one Gram matrix: half a GB; one expert that is wider has one of its own
CHUNK_TOKENS = 2048  # whose channels are in memory at a time


@dataclass
class LayerTokens:
    """What one batch left of the tokens that count: the inputs of every writer, what the stream lacks, and which tokens are held
    out. `lacking_RH` changes while the layer is solved."""

    inputs: dict[str, WriterInputs]
    lacking_RH: torch.Tensor
    held_out_R: torch.Tensor

    def chunks(self, rows: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, "LayerTokens"]]:
        """The tokens of `rows` (None: all), some at a time, and which they are."""
        every = torch.arange(len(self.lacking_RH), device=self.lacking_RH.device)
        for part in (every if rows is None else rows).split(CHUNK_TOKENS):
            inputs = {name: mine.rows(part) for name, mine in self.inputs.items()}
            yield part, LayerTokens(inputs, self.lacking_RH[part], self.held_out_R[part])

    @property
    def fitted(self) -> torch.Tensor:
        """The rows that are not held out."""
        return (~self.held_out_R).nonzero().flatten()

    @property
    def held_out(self) -> torch.Tensor:
        return self.held_out_R.nonzero().flatten()


class Unit(NamedTuple):
    """One expert or linear layer; `columns`: where its channels stand in its group."""

    writer: ResidualWriter
    number: int
    gain: float
    columns: slice


def groups_of(writers: Sequence[tuple[ResidualWriter, float]]) -> list[list[Unit]]:
    """All units of the writers (each with its gain), in groups whose channels fit into one Gram matrix."""
    groups: list[list[Unit]] = [[]]
    for writer, gain in writers:
        for number in range(writer.units):
            start = groups[-1][-1].columns.stop if groups[-1] else 0
            if groups[-1] and start + writer.width > GROUP_CHANNELS:
                groups.append([])
                start = 0
            groups[-1].append(Unit(writer, number, gain, slice(start, start + writer.width)))
    return groups


def channels_of_group(
    group: Sequence[Unit], tokens: LayerTokens, device: torch.device
) -> tuple[torch.Tensor, list[tuple[slice, torch.Tensor]]]:
    """Z [R, N], and of each unit's columns the rows in which they are not zero."""
    count = len(tokens.lacking_RH)
    Z_RN = torch.zeros(count, group[-1].columns.stop, dtype=tokens.lacking_RH.dtype, device=device)
    blocks = []
    for unit in group:
        mine = unit.writer.channels(tokens.inputs[unit.writer.name].to(device), unit.number)
        Z_RN[mine.tokens, unit.columns] = unit.gain * mine.channels_RW.to(Z_RN.dtype)
        blocks.append((unit.columns, mine.tokens))
    return Z_RN, blocks


def held_out_error(batches: Sequence[LayerTokens], device: torch.device) -> float:
    """The squared size of what the held-out tokens of all ranks lack."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        total += batch.lacking_RH[batch.held_out_R].double().square().sum()
    sum_over_ranks(total)
    return float(total)
