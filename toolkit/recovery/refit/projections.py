"""Refit what the channels of experts are made of: their gate and up projections, by a Gauss–Newton step.

With the down projections as they are, a change dP of an expert's projection moves what it writes, to first order, by

    J dP = fold(S ∘ (x dPᵀ)) D,    S = how each channel moves with what the projection gives, by the family's own gate

which is exact in the up projection of a gated expert. The least-squares problem J dP = R has V · H unknowns per expert, too many
for a Gram matrix, so conjugate gradients take a few steps at it, each one pass over the tokens, preconditioned by the moments of
x (each token with its mean S²) and by the diagonal of the rest. Held-out tokens say when to stop, which is all the damping that
it needs; whether it stays, and how much of it, is decided by the error of the weights as they will be stored, with nothing
linearised.

Shape legend: R tokens, W width (channels of an expert), V numbers that they are made of, H hidden size.
"""

from collections.abc import Sequence

import torch

from toolkit.moe.residual_writers import ExpertsWriter, UnitSlopes
from toolkit.recovery.refit.tokens import LayerTokens, Unit, channels_of_group, held_out_error
from toolkit.runtime.distributed import from_main, sum_over_ranks

STEPS = 6  # of conjugate gradients
SHARES = (1.0, 0.5, 0.25)  # of the change that are tried, the largest first
DAMPING = 1e-2  # of the preconditioner, relative to the means of its diagonals

Matrices = list[torch.Tensor]  # [V, H] for each expert


def refit_projections(group: Sequence[Unit], batches: Sequence[LayerTokens], device: torch.device, dtype: torch.dtype) -> int:
    """Changes the projections of `group`'s experts in place, on every rank alike, to numbers of `dtype`, and what `batches` lack.

    Returns the steps that were taken; 0 where they would not lower the held-out error: all stays. Every rank must call it."""
    units = [unit for unit in group if isinstance(unit.writer, ExpertsWriter)]
    if not units:
        return 0
    changes, steps = _conjugate_gradients(Linearised(units, batches, device))
    if not steps:
        return 0
    before, error = [_projection(unit).clone() for unit in units], held_out_error(batches, device)
    _add_written(units, batches, device, 1.0)
    for share in SHARES:
        for unit, old, change in zip(units, before, changes, strict=True):
            new = (old + share * change.to(old.dtype)).to(dtype).to(old.dtype)
            from_main(new)
            _projection(unit).copy_(new)
        _add_written(units, batches, device, -1.0)
        if held_out_error(batches, device) < error:
            return steps
        _add_written(units, batches, device, 1.0)
    for unit, old in zip(units, before, strict=True):
        _projection(unit).copy_(old)
    _add_written(units, batches, device, -1.0)
    return 0


def _projection(unit: Unit) -> torch.Tensor:
    assert isinstance(unit.writer, ExpertsWriter)
    return unit.writer.projection(unit.number)


def _add_written(units: Sequence[Unit], batches: Sequence[LayerTokens], device: torch.device, sign: float) -> None:
    """Adds what the units write now to what `batches` lack."""
    for batch in batches:
        for rows, chunk in batch.chunks():
            Z_RN, blocks = channels_of_group(units, chunk, device)
            for unit, (columns, tokens) in zip(units, blocks, strict=True):
                wrote_RH = Z_RN[tokens][:, columns] @ unit.writer.weight(unit.number).to(Z_RN.dtype)
                batch.lacking_RH[rows[tokens.to(rows.device)]] += sign * wrote_RH.to(batch.lacking_RH)


def _conjugate_gradients(problem: "Linearised") -> tuple[Matrices, int]:
    """The change of every expert's projection, and after how many steps: as long as the held-out error falls."""
    lacking = problem.batches
    batches = [LayerTokens(batch.inputs, batch.lacking_RH.clone(), batch.held_out_R) for batch in lacking]
    gradients, precondition = problem.start()
    changes = [torch.zeros_like(gradient) for gradient in gradients]
    steepest = precondition(gradients)
    directions = [each.clone() for each in steepest]
    slope, error = _dot(gradients, steepest), held_out_error(batches, problem.device)
    for step in range(STEPS):
        images, curved = problem.apply(directions)
        curvature = _dot(directions, curved)
        if not curvature > 0:
            return changes, step
        length = slope / curvature
        for batch, image_RH in zip(batches, images, strict=True):
            batch.lacking_RH -= length * image_RH
        if not (now := held_out_error(batches, problem.device)) < error:
            return changes, step
        error = now
        for change, direction, gradient, curve in zip(changes, directions, gradients, curved, strict=True):
            change += length * direction
            gradient -= length * curve
        steepest = precondition(gradients)
        before, slope = slope, _dot(gradients, steepest)
        for direction, each in zip(directions, steepest, strict=True):
            direction.mul_(slope / before).add_(each)
    return changes, STEPS


def _dot(left: Matrices, right: Matrices) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))


class _Preconditioner:
    """The inverse of (moments of x) ⊗ (the diagonal of the rest), for each expert."""

    def __init__(self, moments_HH: torch.Tensor, diagonals: Sequence[torch.Tensor]) -> None:
        damped = moments_HH + DAMPING * moments_HH.diagonal().mean() * torch.eye(len(moments_HH)).to(moments_HH)
        self.inverse_HH = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        floor = DAMPING * torch.cat(list(diagonals)).mean()
        self.diagonals = [diagonal_V + floor for diagonal_V in diagonals]

    def __call__(self, gradients: Matrices) -> Matrices:
        return [
            (gradient / diagonal_V.to(gradient).unsqueeze(1)) @ self.inverse_HH.to(gradient)
            for gradient, diagonal_V in zip(gradients, self.diagonals, strict=True)
        ]


class Linearised:
    """J over the tokens of all batches; sums are over those that are not held out, of all ranks."""

    def __init__(self, units: Sequence[Unit], batches: Sequence[LayerTokens], device: torch.device) -> None:
        self.units, self.batches, self.device = units, batches, device
        self.dtype = torch.promote_types(_projection(units[0]).dtype, torch.float32)

    def start(self) -> tuple[Matrices, _Preconditioner]:
        """Jᵀ R, and what brings steps along it near to the solution."""
        gradients = self._zeros()
        hidden = gradients[0].shape[1]
        moments_HH = torch.zeros(hidden, hidden, dtype=torch.float64, device=self.device)
        diagonals = [torch.zeros(len(each), dtype=torch.float64, device=self.device) for each in gradients]
        for batch in self.batches:
            for _, chunk in batch.chunks(batch.fitted):
                slopes = self._slopes(chunk)
                self._add_back(gradients, slopes, chunk.lacking_RH.to(self.device))
                for unit, mine, diagonal_V in zip(self.units, slopes, diagonals, strict=True):
                    squares_RV = mine.slope_RV.square()
                    moments_HH += (mine.hidden_RH.T @ (squares_RV.mean(1, True) * mine.hidden_RH)).double()
                    diagonal_V += squares_RV.double().sum(0) * self._down(unit).double().square().sum(1)
        for total in (*gradients, moments_HH, *diagonals):
            sum_over_ranks(total)
        return gradients, _Preconditioner(moments_HH, diagonals)

    def apply(self, directions: Matrices) -> tuple[list[torch.Tensor], Matrices]:
        """J d for the tokens of every batch, the held-out ones, too; and JᵀJ d."""
        images, curved = [], self._zeros()
        for batch in self.batches:
            parts = []
            for _, chunk in batch.chunks():
                slopes = self._slopes(chunk)
                image_RH = torch.zeros_like(chunk.lacking_RH, device=self.device)
                for unit, mine, direction in zip(self.units, slopes, directions, strict=True):
                    moved_RV = (mine.hidden_RH @ direction.T) * mine.slope_RV
                    image_RH.index_add_(0, mine.tokens, moved_RV @ self._down(unit))
                parts.append(image_RH.to(chunk.lacking_RH))
                self._add_back(curved, slopes, image_RH * ~chunk.held_out_R.to(self.device).unsqueeze(1))
            images.append(torch.cat(parts))
        for total in curved:
            sum_over_ranks(total)
        return images, curved

    def _add_back(self, sums: Matrices, slopes: Sequence[UnitSlopes], vector_RH: torch.Tensor) -> None:
        """Adds Jᵀ `vector_RH` to `sums`."""
        for unit, mine, total in zip(self.units, slopes, sums, strict=True):
            total += ((vector_RH[mine.tokens] @ self._down(unit).T) * mine.slope_RV).T @ mine.hidden_RH

    def _zeros(self) -> Matrices:
        return [torch.zeros(_projection(unit).shape, dtype=self.dtype, device=self.device) for unit in self.units]

    def _down(self, unit: Unit) -> torch.Tensor:
        """[V, H]: what each number that the projection gives moves in the stream, when its channel moves by one."""
        assert isinstance(unit.writer, ExpertsWriter)
        rows = unit.writer.channel_of_row.to(self.device)
        return unit.gain * unit.writer.weight(unit.number).to(self.device, self.dtype)[rows]

    def _slopes(self, chunk: LayerTokens) -> list[UnitSlopes]:
        found = []
        for unit in self.units:
            assert isinstance(unit.writer, ExpertsWriter)
            found.append(unit.writer.slopes(chunk.inputs[unit.writer.name].to(self.device), unit.number, self.dtype))
        return found
