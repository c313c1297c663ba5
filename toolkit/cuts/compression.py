"""Compressions of experts' weights that no stock reader loads: measured in a sweep, masked, and never written.

    low_rank:0.5   each matrix of an expert as a product of two with half as many numbers    SVD-LLM, arXiv 2403.07378;
                                                                                             of experts: MoE-I², 2411.01016
    2:4            of every four neighbours along the input two are zero                     Wanda, arXiv 2306.11695

Both are chosen so that outputs on the calibration tokens change little: X [in, T] are the inputs of one matrix W [out, in] of one
expert at the tokens routed to it, C = X Xᵀ their moments. So a sweep shows what they cost beside fewer experts at equal bytes.

Shape legend: E experts, T tokens; out, in: sizes of a matrix.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.plan import Plan
from toolkit.moe.blocks import find_blocks
from toolkit.moe.expert_matrices import expert_matrices
from toolkit.moe.load import quantization_of
from toolkit.moe.model_size import Sizes
from toolkit.runtime.errors import PollardError

DAMPING = 1e-6
"""Of the mean diagonal of C, added to the diagonal: directions that no token took are then ranked by their weights alone."""
GROUP, STAY = 4, 2  # of every four neighbours two
INDEX_BITS = 2  # which of the four a number is


class MatrixInputs(NamedTuple):
    """What calibration has left of the inputs of one matrix of every expert of a block."""

    norm: torch.Tensor  # root of the sum of squares of every input, float64 [E, in]
    basis: torch.Tensor | None  # `whitened_basis` of every expert, [E, out, rank]; None where it was not asked for


ExpertInputs = Mapping[str, Mapping[str, MatrixInputs]]
"""By block and parameter."""


class Compression(ABC):
    """One way to say an expert's matrices with fewer bytes."""

    not_written: ClassVar[str]
    """Why a checkpoint with it is not written, as a sentence without its full stop."""

    @abstractmethod
    def __str__(self) -> str:
        """As a recipe names it."""

    @abstractmethod
    def numbers(self, shape: tuple[int, int]) -> int:
        """How many numbers are stored for a matrix [out, in]. Raises PollardError for a shape that cannot be compressed so."""

    def bits(self, shape: tuple[int, int], bits_per_number: int) -> int:
        return self.numbers(shape) * bits_per_number

    @abstractmethod
    def compress(self, weight: torch.Tensor, inputs: MatrixInputs, expert: int) -> torch.Tensor:
        """The weights [out, in] of `expert` as its compressed matrix multiplies."""


@dataclass(frozen=True)
class LowRank(Compression):
    """W_r = U Uᵀ W, U the first r left singular vectors of W S, C = S Sᵀ: the best matrix of that rank on the calibration tokens.

    SVD-LLM writes the same matrix as U Σ Vᵀ S⁻¹. ‖(W − W_r) X‖² is the sum of the squared singular values beyond r (Eckart and
    Young, in the whitened space). Gate and up projection are one matrix, as in the experts interface. r is the largest with
    r (out + in) ≤ share · out · in.
    """

    share: float
    not_written = (
        "Low rank is not written, for no stock reader loads an expert as two factors: transformers, vLLM and llama.cpp read "
        "whole gate, up and down projections, config.json has no key for a rank, and multiplied out they are as large as before"
    )

    def __str__(self) -> str:
        return f"low_rank:{self.share:g}"

    def rank(self, shape: tuple[int, int]) -> int:
        out, into = shape
        rank = int(self.share * out * into / (out + into))
        if not rank:
            raise PollardError(
                f"{self}: two factors of a matrix {list(shape)} have {out + into:,} numbers for each rank, more than that share "
                f"of its {out * into:,}. Give at least {(out + into) / (out * into):.3g}.",
                code="compression.no-rank",
            )
        return min(rank, *shape)

    def numbers(self, shape: tuple[int, int]) -> int:
        return self.rank(shape) * sum(shape)

    def compress(self, weight: torch.Tensor, inputs: MatrixInputs, expert: int) -> torch.Tensor:
        assert inputs.basis is not None
        basis = inputs.basis[expert, :, : self.rank((weight.shape[0], weight.shape[1]))].to(weight.device, torch.float64)
        return (basis @ (basis.T @ weight.double())).to(weight.dtype)


@dataclass(frozen=True)
class TwoOfFour(Compression):
    """Of every four neighbours of a row the two with the largest |w| · ‖x‖₂ stay, x the input that a weight multiplies, over the
    tokens of its expert; ties: the lower index. Half of the numbers, each with two bits that say which of the four it is: in 16
    bits 0.5625 of the bytes."""

    not_written = (
        "2:4 is not written, for no stock reader loads such experts: config.json has no key for it that transformers or "
        "llama.cpp know, vLLM has removed its reader, and as plain tensors the zeros take as many bytes as before"
    )

    def __str__(self) -> str:
        return "2:4"

    def numbers(self, shape: tuple[int, int]) -> int:
        if shape[1] % GROUP:
            raise PollardError(
                f"2:4 takes the inputs of an expert's matrix four by four, and one of {list(shape)} (out, in) has {shape[1]}: "
                "leave 2:4 out of sweep.compression.",
                code="compression.not-in-fours",
            )
        return shape[0] * shape[1] * STAY // GROUP

    def bits(self, shape: tuple[int, int], bits_per_number: int) -> int:
        return self.numbers(shape) * (bits_per_number + INDEX_BITS)

    def compress(self, weight: torch.Tensor, inputs: MatrixInputs, expert: int) -> torch.Tensor:
        norm = inputs.norm[expert].to(weight.device)
        score = weight.double().abs() * (norm if norm.any() else 1.0)  # an expert that no token reached: by its weights
        order = score.unflatten(1, (-1, GROUP)).sort(dim=-1, descending=True, stable=True).indices
        stays = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :STAY], True)
        return weight * stays.flatten(1)


def compression_of(text: str) -> Compression:
    """From what a recipe's sweep.compression says."""
    found = re.fullmatch(r"low_rank:(.+)", text)
    return LowRank(float(found[1])) if found else TwoOfFour()


def whitened_basis(weight: torch.Tensor, moments: torch.Tensor, rank: int) -> torch.Tensor:
    """U [out, rank], orthonormal: the first left singular vectors of W S, where S Sᵀ are the `moments` [in, in] of the inputs,
    damped. Where these are all zero, of W."""
    mean = moments.diagonal().mean()
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    root = torch.linalg.cholesky(moments + DAMPING * mean * eye) if mean else eye
    left: torch.Tensor = torch.linalg.svd(weight.to(moments.device, moments.dtype) @ root, full_matrices=False).U
    return left[:, :rank]


def check_compression(model: PreTrainedModel, compression: Compression) -> None:
    """Raises PollardError where the experts of `model`, which may be without weights, cannot be compressed so."""
    if quantized := quantization_of(model.config):
        raise PollardError(
            f"The weights are quantized ({quantized}): {compression} reads plain ones. Sweep a plain copy of the checkpoint "
            "(bfloat16), or leave sweep.compression out.",
            code="compression.quantized",
        )
    for block in find_blocks(model):
        for matrix in expert_matrices(block.experts):
            compression.numbers(matrix.shape)


@contextmanager
def compressed(model: PreTrainedModel, plan: Plan, compression: Compression, inputs: ExpertInputs) -> Iterator[None]:
    """Inside the context the experts that `plan` keeps have the weights that `compression` leaves of them; after it their own,
    bit for bit. These wait in host memory meanwhile: a second copy of all kept experts. Routers are the model's own here: whoever
    masks, too, does it inside."""
    cut = plan.cut(ExpertsCut)
    own: list[tuple[torch.Tensor, torch.Tensor]] = []  # the model's weights [out, in], and what they were
    try:
        for block in find_blocks(model):
            for matrix in expert_matrices(block.experts):
                if matrix.parameter.is_meta:
                    raise PollardError(
                        f"The experts of {block.name} wait on the host or the disk for every pass (model.placement): they cannot "
                        "be compressed there. Use more GPUs, or leave sweep.compression out.",
                        code="compression.offloaded",
                    )
                for expert in cut.kept[block.name] if cut else range(block.expert_count):
                    weight = matrix.of(expert)
                    own.append((weight, weight.to("cpu", copy=True)))
                    weight.copy_(compression.compress(weight, inputs[block.name][matrix.name], expert))
        yield
    finally:
        for weight, original in own:
            weight.copy_(original)


class CompressedSizes(NamedTuple):
    """Of a model with compressed experts, as a file would hold it."""

    parameters: int
    active_parameters: int
    bytes: int


def compressed_sizes(model: PreTrainedModel, whole: Sizes, compression: Compression, dtype: torch.dtype) -> CompressedSizes:
    """`model` may be without weights; `whole`: its sizes. `dtype`: of the numbers. Routers, biases, shared experts and all
    outside of the blocks stay as they are."""
    bits_per_number = dtype.itemsize * 8
    parameters, active, bits = *whole, whole.parameters * bits_per_number
    for block in find_blocks(model):
        for matrix in expert_matrices(block.experts):
            before, after = matrix.shape[0] * matrix.shape[1], compression.numbers(matrix.shape)
            parameters -= block.expert_count * (before - after)
            active -= block.experts_per_token * (before - after)
            bits -= block.expert_count * (before * bits_per_number - compression.bits(matrix.shape, bits_per_number))
    return CompressedSizes(parameters, active, -(-bits // 8))
