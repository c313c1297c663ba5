import numpy as np
import pytest
import torch
from conftest import raises

from toolkit.recovery.refit import ridge
from toolkit.recovery.refit.ridge import NormalEquations


def equations_of(Z: torch.Tensor, R: torch.Tensor, blocks: list[tuple[slice, torch.Tensor]]) -> NormalEquations:
    equations = NormalEquations(Z.shape[1], R.shape[1], torch.device("cpu"))
    for rows in torch.arange(len(Z)).split(7):
        inside = {int(row): n for n, row in enumerate(rows)}
        own = [(columns, torch.tensor([inside[int(r)] for r in given if int(r) in inside]).long()) for columns, given in blocks]
        equations.add(Z[rows], own, R[rows])
    equations.reduce()
    return equations


@pytest.fixture
def sparse() -> tuple[torch.Tensor, torch.Tensor, list[tuple[slice, torch.Tensor]]]:
    """Three units of three columns; each is zero in some rows."""
    draw = torch.Generator().manual_seed(0)
    Z, R = torch.randn(40, 9, generator=draw).double(), torch.randn(40, 5, generator=draw).double()
    blocks = []
    for unit in range(3):
        rows = torch.rand(40, generator=draw) < 0.6
        Z[~rows, 3 * unit : 3 * unit + 3] = 0
        blocks.append((slice(3 * unit, 3 * unit + 3), rows.nonzero().flatten()))
    return Z, R, blocks


def test_solutions_are_those_of_the_augmented_least_squares_problem(
    sparse: tuple[torch.Tensor, torch.Tensor, list[tuple[slice, torch.Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """min ‖Z D − R‖² + λ m ‖D‖² is the plain problem with √(λ m) I below Z: solved without normal equations."""
    monkeypatch.setattr(ridge, "BLOCK", 4)  # several blocks, the last one short
    Z, R, blocks = sparse
    equations = equations_of(Z, R, blocks)
    m = float((Z**2).sum() / 9)
    assert equations.scale == pytest.approx(m)
    penalties = (1e-6, 1e-2, 1.0)
    for _ in range(2):  # the sums are as they were afterwards
        for penalty, found in zip(penalties, equations.solutions(penalties), strict=True):
            below = np.sqrt(penalty * m) * np.eye(9)
            expected = np.linalg.lstsq(np.vstack([Z, below]), np.vstack([R, np.zeros((9, 5))]), rcond=None)[0]
            assert np.allclose(found, expected, atol=1e-9)


def test_a_large_penalty_changes_nothing(sparse: tuple[torch.Tensor, torch.Tensor, list[tuple[slice, torch.Tensor]]]) -> None:
    sizes = [float(found.norm()) for found in equations_of(*sparse).solutions((1e-6, 1.0, 1e6, 1e12))]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 1e-10 < sizes[0]


def test_fewer_tokens_than_unknowns_have_a_solution() -> None:
    draw = torch.Generator().manual_seed(0)
    Z, R = torch.randn(4, 9, generator=draw), torch.randn(4, 2, generator=draw)
    (found,) = equations_of(Z, R, [(slice(0, 9), torch.arange(4))]).solutions((1e-6,))
    assert torch.allclose(Z.double() @ found, R.double(), atol=1e-3)


def test_numbers_that_are_not_finite_are_refused() -> None:
    Z = torch.ones(4, 2)
    Z[1, 0] = torch.nan
    with raises("refit.not-finite", "model.dtype=float32"):
        equations_of(Z, torch.ones(4, 3), [(slice(0, 2), torch.arange(4))])
