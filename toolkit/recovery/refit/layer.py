"""Refit one decoder layer: all that writes into its residual stream by a linear map, on the tokens of all batches.

The residual R is what the stream lacks to be the original's behind the layer, so the change D of the writers' weights is the
least-squares solution of Z D = R, with Z their channels. λ is chosen on held-out sequences, by the error of the weights as they
will be stored. Where all channels do not fit into one Gram matrix they are solved group by group, against what the others leave
(Gauss–Seidel). Then what makes the experts' channels has its turn (projections.py), and the down projections once more.

Shape legend: R tokens that count, N unknowns (channels of a group), W width, H hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from toolkit.moe.residual_writers import ResidualWriter
from toolkit.recovery.refit.projections import refit_projections
from toolkit.recovery.refit.ridge import NormalEquations
from toolkit.recovery.refit.tokens import LayerTokens, Unit, channels_of_group, groups_of
from toolkit.runtime.distributed import from_main, on_main, sum_over_ranks

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SWEEPS = 2  # over the groups, where there are several
ROUNDS = 2  # of the experts' projections, and the down projections after them


class Solved(NamedTuple):
    """Of every group of a layer: its penalty when it last changed (None: it stayed), and the steps of its projections."""

    penalties: list[float | None]
    steps: list[int]

    def undone(self) -> "Solved":
        return Solved([None] * len(self.penalties), [0] * len(self.steps))


def solve_layer(
    writers: Sequence[tuple[ResidualWriter, float]], batches: Sequence[LayerTokens], device: torch.device, dtype: torch.dtype
) -> Solved:
    """Changes the weights of `writers` in place, on every rank alike, to numbers of `dtype`. Every rank must call it, with its
    own batches."""
    groups = groups_of(writers)
    penalties = _solve_groups(groups, batches, device, dtype)
    steps = [0] * len(groups)
    for _ in range(ROUNDS):
        taken = [refit_projections(group, batches, device, dtype) for group in groups]
        if not any(taken):
            break
        steps = [sum(pair) for pair in zip(steps, taken, strict=True)]
        again = _solve_groups(groups, batches, device, dtype)
        penalties = [new or old for new, old in zip(again, penalties, strict=True)]
    return Solved(penalties, steps)


def _solve_groups(
    groups: Sequence[Sequence[Unit]], batches: Sequence[LayerTokens], device: torch.device, dtype: torch.dtype
) -> list[float | None]:
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
            Z_RN, blocks = channels_of_group(group, chunk, device)
            equations.add(Z_RN, blocks, chunk.lacking_RH.to(device))
    equations.reduce()
    if not equations.scale:
        return None
    candidates = _solutions(equations, weights_NH, dtype)
    del equations  # and its matrix
    errors = torch.zeros(1 + len(candidates), dtype=torch.float64, device=device)
    for batch in batches:
        for _, chunk in batch.chunks(batch.held_out):
            Z_RN, _ = channels_of_group(group, chunk, device)
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
        for rows, chunk in batch.chunks():
            Z_RN, _ = channels_of_group(group, chunk, device)
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
