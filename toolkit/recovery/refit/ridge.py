"""Least squares towards what is there already: the change D of a weight that brings Z D nearest to the residual R,

    D = (ZᵀZ + λ m I)⁻¹ Zᵀ R,    m = mean diagonal of ZᵀZ

so that λ → ∞ leaves the weight alone. Sums and solutions are float64. Of the Gram matrix ZᵀZ there is one copy: its Cholesky
factor, for each λ another, lies in the other triangle.

Shape legend: R tokens, N unknowns (channels), H hidden size.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lapack

from toolkit.runtime.distributed import sum_over_ranks
from toolkit.runtime.errors import PollardError

BLOCK = 1024  # rows of the Gram matrix that are copied at a time


class NormalEquations:
    """ZᵀZ [N, N] and ZᵀR [N, H], summed over batches and then over ranks.

    Z is given block of columns by block of columns, each with the rows in which it is not zero.
    """

    def __init__(self, unknowns: int, hidden: int, device: torch.device) -> None:
        self.gram_NN = torch.zeros(unknowns, unknowns, dtype=torch.float64, device=device)  # its lower triangle counts
        self.cross_NH = torch.zeros(unknowns, hidden, dtype=torch.float64, device=device)

    def add(self, Z_RN: torch.Tensor, blocks: Sequence[tuple[slice, torch.Tensor]], residual_RH: torch.Tensor) -> None:
        """`blocks`: of Z's columns those of one unit, and the rows in which they are not zero."""
        for columns, rows in blocks:
            mine = Z_RN[rows][:, columns].double().T
            self.gram_NN[columns, : columns.stop] += mine @ Z_RN[rows][:, : columns.stop].double()
            self.cross_NH[columns] += mine @ residual_RH[rows].double()

    def reduce(self) -> None:
        """Sums over all ranks; every rank must call it. Raises PollardError for sums that are not finite."""
        sum_over_ranks(self.gram_NN)
        sum_over_ranks(self.cross_NH)
        if not (self.gram_NN.diagonal().isfinite().all() and self.cross_NH.isfinite().all()):
            raise PollardError(
                "Refit meets numbers that are not finite: the model overflows in its dtype, or its weights are damaged. Try "
                "model.dtype=float32.",
                code="refit.not-finite",
            )

    @property
    def scale(self) -> float:
        """m; 0 where no token has any channel."""
        return float(self.gram_NN.diagonal().mean())

    def solutions(self, penalties: Sequence[float]) -> Iterator[torch.Tensor]:
        """D [N, H] for each λ, on the device of the sums. Raises PollardError where they have no Cholesky factor."""
        return self._factor_on_gpu(penalties) if self.gram_NN.is_cuda else self._factor_in_place(penalties)

    def _factor_on_gpu(self, penalties: Sequence[float]) -> Iterator[torch.Tensor]:
        for penalty in penalties:
            damped_NN = self.gram_NN.clone()
            damped_NN.diagonal().add_(penalty * self.scale)
            factor_NN, failed = torch.linalg.cholesky_ex(damped_NN)  # reads the lower triangle
            _check_factor(int(failed), penalty)
            yield torch.cholesky_solve(self.cross_NH, factor_NN)

    def _factor_in_place(self, penalties: Sequence[float]) -> Iterator[torch.Tensor]:
        gram = self.gram_NN.numpy()
        diagonal = gram.diagonal().copy()
        cross = self.cross_NH.numpy()
        for penalty in penalties:
            _mirror_lower(gram)
            gram.flat[:: len(gram) + 1] = diagonal + penalty * diagonal.mean()
            # The transposed view is in LAPACK's order, and its lower triangle is this one's upper
            _, failed = lapack.dpotrf(gram.T, lower=1, clean=0, overwrite_a=1)
            _check_factor(failed, penalty)
            found, _ = lapack.dpotrs(gram.T, cross, lower=1)
            yield torch.from_numpy(found)
        gram.flat[:: len(gram) + 1] = diagonal


def _check_factor(failed: int, penalty: float) -> None:
    if failed:
        raise PollardError(
            f"Refit cannot factor the sums over its tokens with λ = {penalty}: in float64 they are not of full rank. Give it "
            "more examples (pruning.refit.examples; while shapes are measured, pruning.fit.refit.examples).",
            code="refit.singular",
        )


def _mirror_lower(gram: npt.NDArray[np.float64]) -> None:
    """Makes the upper triangle the lower's mirror image, a block at a time."""
    for begin in range(0, len(gram), BLOCK):
        rows = slice(begin, begin + BLOCK)
        gram[:begin, rows] = gram[rows, :begin].T
        below = np.tril(gram[rows, rows], -1)
        gram[rows, rows] = below + below.T
