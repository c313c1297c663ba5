"""What compressions of experts must know of their inputs (toolkit/cuts/compression.py), from one pass over calibration batches.

For one matrix of expert e, and X its inputs at the tokens routed to e (the hidden states; for the down projection the channels)

    moments  [in, in]  X Xᵀ, of which a whitened basis is made and the moments forgotten: one block's are in memory at a time
    squares  [in]      their diagonal, where nothing needs the rest

All tokens count, also where a criterion looks at completions alone: what an expert makes of the prompt is read by the layers
behind it (low_rank:0.25 of the playground, all experts, on `arithmetic`: a loss of 0.006 on all tokens, 0.51 on completions).
Routing and inputs are those of the original, whole model: not of one with fewer experts, nor with other matrices compressed.

Shape legend: T tokens of a batch, R of them, K experts per token, E experts, H hidden size, W width (channels).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from transformers import PreTrainedModel

from toolkit.calibration.calibrate import CalibrationSource
from toolkit.calibration.channels import CHUNK_NUMBERS
from toolkit.calibration.observer import Observer
from toolkit.calibration.passes import ObservedSource, layerwise_pass
from toolkit.cuts.compression import ExpertInputs, LowRank, MatrixInputs, whitened_basis
from toolkit.moe import BlockActivations, MoEBlock, ObservedBatch, expert_channels, find_blocks, tokens_by_expert
from toolkit.moe.expert_matrices import ExpertMatrix, expert_matrices
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError

MEMORY_SHARE = 0.8  # of what is free may be moments


@torch.no_grad()
def expert_inputs(model: PreTrainedModel, sources: Sequence[CalibrationSource], low_rank: LowRank | None = None) -> ExpertInputs:
    """Observes the inputs of all experts of a loaded `model`. Each rank passes its own batches; all get the same result.

    `low_rank`: the largest share that will be asked for, whose bases begin with those of every smaller one; None: norms alone.
    Raises PollardError where moments do not fit in memory, for no tokens, and for inputs that are not finite.
    """
    blocks = find_blocks(model.eval())
    if low_rank:
        check_memory(blocks, low_rank, model.device)
    moments = _Moments(low_rank)
    observers = [_SourceObserver(moments, scale) for scale in _scales(sources)]
    layerwise_pass(model, [ObservedSource(source.batches, [each]) for source, each in zip(sources, observers, strict=True)])
    return {block.name: moments.inputs[block.name] for block in blocks}


def moment_bytes(blocks: Sequence[MoEBlock]) -> int:
    """Of the largest block's moments, which are in memory at a time, with the decomposition of one expert."""
    shapes = [[matrix.shape for matrix in expert_matrices(block.experts)] for block in blocks]
    counts = [block.expert_count * sum(into**2 for _, into in of_block) for block, of_block in zip(blocks, shapes, strict=True)]
    workspace = max(2 * into**2 + 3 * out * into for of_block in shapes for out, into in of_block)
    return 8 * (max(counts) + workspace)


def check_memory(blocks: Sequence[MoEBlock], low_rank: LowRank, device: torch.device) -> None:
    """Raises PollardError where the moments are larger than the memory that is left on the model's device."""
    needed = moment_bytes(blocks)
    on_gpu = device.type == "cuda"
    free = (
        torch.cuda.mem_get_info(device)[0]
        if on_gpu
        else psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    )
    if needed > MEMORY_SHARE * free:
        raise PollardError(
            f"{low_rank} needs the moments of every expert's inputs, of one block at a time: {needed:,} bytes in float64, and "
            f"{int(free):,} are free {'on the GPU' if on_gpu else 'for each rank'}. Leave low_rank out of sweep.compression "
            "(2:4 needs one number per input), or use a machine with more memory.",
            code="compression.moments-do-not-fit",
        )


@dataclass
class _Moments:
    """Of the blocks at work, and what the finished ones leave."""

    low_rank: LowRank | None
    sums: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # by block and parameter: [E, in, in] or [E, in]
    blocks: dict[str, MoEBlock] = field(default_factory=dict)
    inputs: dict[str, Mapping[str, MatrixInputs]] = field(default_factory=dict)

    def start(self, blocks: Sequence[MoEBlock]) -> None:
        for block in blocks:
            self.blocks[block.name], self.sums[block.name] = block, {}
            for matrix in expert_matrices(block.experts):
                shape = block.expert_count, *[matrix.shape[1]] * (2 if self.low_rank else 1)
                zeros = torch.zeros(shape, dtype=torch.float64, device=matrix.parameter.device)
                self.sums[block.name][matrix.name] = zeros

    def add(self, block: str, expert: int, name: str, inputs_RX: torch.Tensor, scale: float) -> None:
        total = self.sums[block][name][expert]
        for chunk in inputs_RX.split(max(1, CHUNK_NUMBERS // inputs_RX.shape[1])):
            wide = chunk.double()
            total += scale * (wide.T @ wide if total.ndim == 2 else wide.square().sum(0))

    def finish(self) -> None:
        """Over all ranks; every rank must call it."""
        for name in list(self.sums):
            sums, block = self.sums.pop(name), self.blocks.pop(name)
            self.inputs[name] = {
                matrix.name: self._finished(block, matrix, sums.pop(matrix.name)) for matrix in expert_matrices(block.experts)
            }

    def _finished(self, block: MoEBlock, matrix: ExpertMatrix, sums: torch.Tensor) -> MatrixInputs:
        """Ranks exchange one expert's at a time, for they are large."""
        norms, bases = [], []
        for expert, mine in enumerate(sums):
            total = torch.stack(gather(mine.cpu())).sum(0).to(mine.device)
            if not total.isfinite().all():
                raise PollardError(
                    f"The inputs of expert {expert} of {block.name} are not finite. Try model.dtype=float32.",
                    code="calibration.not-finite",
                )
            norms.append((total.diagonal() if total.ndim == 2 else total).sqrt())
            if self.low_rank:
                rank = self.low_rank.rank(matrix.shape)
                precise = torch.promote_types(matrix.parameter.dtype, torch.float32)
                bases.append(whitened_basis(matrix.of(expert), total, rank).to(precise))
        return MatrixInputs(torch.stack(norms), torch.stack(bases) if bases else None)


class _SourceObserver(Observer):
    """Adds one source's inputs to the moments of all."""

    def __init__(self, moments: _Moments, scale: float) -> None:
        self.moments, self.scale = moments, scale

    def on_layer_start(self, blocks: Sequence[MoEBlock]) -> None:
        if not self.moments.sums:
            self.moments.start(blocks)

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        gate_TK, experts = activations.gate_TK, activations.experts
        counted_TK = (gate_TK != 0) & batch.real.to(gate_TK.device).unsqueeze(1)
        up, down = expert_matrices(experts)
        for expert, tokens, _ in tokens_by_expert(activations.index_TK, counted_TK, up.parameter.shape[0]):
            hidden_RH = activations.hidden_TH[tokens]
            self.moments.add(activations.block, expert, up.name, hidden_RH, self.scale)
            channels_RW = expert_channels(experts, hidden_RH, expert)
            self.moments.add(activations.block, expert, down.name, channels_RW, self.scale)

    def on_layer_end(self) -> None:
        self.moments.finish()  # the first of the sources' observers: all batches have passed


def _scales(sources: Sequence[CalibrationSource]) -> list[float]:
    """Per source the factor of its sums: each counts by its weight, however many tokens it has. Raises PollardError for none."""
    mine = [sum(int(batch["attention_mask"].sum()) for batch in source.batches) for source in sources]
    counts = [sum(of_ranks) for of_ranks in zip(*gather(mine), strict=True)]
    if not sum(counts):
        raise PollardError("Calibration saw no tokens: the batches are empty.", code="calibration.no-tokens")
    return [source.weight / n if n else 0.0 for source, n in zip(sources, counts, strict=True)]
