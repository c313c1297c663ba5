"""Refit one decoder layer: all that writes into its residual stream by a linear map, on the tokens of all batches.

The residual R is what the stream lacks to be the original's behind the layer, so the change D of the writers' weights is the
least-squares solution of Z D = R, with Z their channels. λ is chosen on held-out sequences, by the error of the weights as they
will be stored. Where all channels do not fit into one Gram matrix they are solved group by group, against what the others leave
(Gauss–Seidel).

Shape legend: R tokens that count, N unknowns (channels of a group), W width, H hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from toolkit.moe.residual_writers import ResidualWriter, WriterInputs
from toolkit.recovery.refit.ridge import NormalEquations
from toolkit.runtime.distributed import from_main, on_main, sum_over_ranks

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GROUP_CHANNELS = 8192  # of one Gram matrix: half a GB; one expert that is wider has one of its own
SWEEPS = 2  # over the groups, where there are several
CHUNK_TOKENS = 2048  # whose channels are in memory at a time


@dataclass
class LayerTokens:
    """What one batch left of the tokens that count: the inputs of every writer, what the stream lacks, and which tokens are held
    out. `lacking_RH` changes while the layer is solved."""

    inputs: dict[str, WriterInputs]
    lacking_RH: torch.Tensor
    held_out_R: torch.Tensor

    def chunks(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, "LayerTokens"]]:
        """The tokens of `rows`, some at a time, and which of `rows` they are."""
        for part in rows.split(CHUNK_TOKENS):
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


def solve_layer(
    writers: Sequence[tuple[ResidualWriter, float]], batches: Sequence[LayerTokens], device: torch.device, dtype: torch.dtype
) -> list[float | None]:
    """Changes the weights of `writers` in place, on every rank alike, to numbers of `dtype`.

    Returns the penalty of every group in the last sweep that changed it (None: it stayed). Every rank must call it, with its own
    batches."""
    groups = groups_of(writers)
    chosen: list[float | None] = [None] * len(groups)
    for _ in range(SWEEPS if len(groups) > 1 else 1):
        for number, group in enumerate(groups):
            chosen[number] = _solve_group(group, batches, device, dtype) or chosen[number]
    return chosen


def _solve_group(group: Sequence[Unit], batches: Sequence[LayerTokens], device: torch.device, dtype: torch.dtype) -> float | None:
    weights_NH = torch.cat([unit.writer.weight(unit.number) for unit in group])
    equations = NormalEquations(len(weights_NH), weights_NH.shape[1], device)
    for batch in batches:
        for _, chunk in batch.chunks(batch.fitted):
            Z_RN, blocks = _channels(group, chunk, device)
            equations.add(Z_RN, blocks, chunk.lacking_RH.to(device))
    equations.reduce()
    if not equations.scale:
        return None
    candidates = _solutions(equations, weights_NH, dtype)
    del equations  # and its matrix
    errors = torch.zeros(1 + len(candidates), dtype=torch.float64, device=device)
    for batch in batches:
        for _, chunk in batch.chunks(batch.held_out):
            Z_RN, _ = _channels(group, chunk, device)
            lacking_RH = chunk.lacking_RH.to(device)
            left = [lacking_RH, *(lacking_RH - Z_RN @ (new - weights_NH).to(Z_RN.dtype) for new in candidates)]
            errors += torch.stack([each.double().square().sum() for each in left])
    sum_over_ranks(errors)
    best = int(errors.argmin())
    if not best:
        return None
    new_NH = candidates[best - 1]
    change_NH = (new_NH - weights_NH).to(batches[0].lacking_RH.dtype) if batches else new_NH
    for batch in batches:
        for rows, chunk in batch.chunks(torch.arange(len(batch.lacking_RH))):
            Z_RN, _ = _channels(group, chunk, device)
            batch.lacking_RH[rows] -= (Z_RN @ change_NH).to(batch.lacking_RH)
    for unit in group:
        unit.writer.weight(unit.number).copy_(new_NH[unit.columns])
    return PENALTIES[best - 1]


def _solutions(equations: NormalEquations, weights_NH: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The new weights for each penalty, on every rank. Rank 0 alone solves: ranks of one machine would do the same on the same
    cores."""
    found = [torch.empty_like(weights_NH) for _ in PENALTIES]

    def solve() -> None:
        for weights, change_NH in zip(found, equations.solutions(PENALTIES), strict=True):
            weights.copy_((weights_NH + change_NH).to(dtype))

    on_main(solve)
    for weights in found:
        from_main(weights)
    return found


def _channels(
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
