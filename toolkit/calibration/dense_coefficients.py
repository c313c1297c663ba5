"""How much each kept expert counts in the dense form, where it serves every token (toolkit/cuts/dense.py).

Layer after layer, each on what the dense model passes on so far, against the original block's output on its own inputs:

    mean gates      c_0 = Σ_t g_t / T                     g_t [n]: gate weights with routing over the kept experts
    least squares   c = c_0 + (G + λ m I)⁻¹ (b − G c_0)   G = Σ_t F_t F_tᵀ, m its mean diagonal, b = Σ_t F_t y_t;
                                                          F_t [n, H]: the kept experts' outputs

The least-squares numbers have the smaller error, whatever λ is: it draws them towards the mean gates, and keeps them finite
where experts answer alike. Where all gate weights are constant (one expert per block, a softmax over the chosen) nothing is
fitted: with them the dense form is exactly the model whose routers choose. Shared experts that a sigmoid gate weighs are one more
row of F, and part of the target; shared experts without a gate count as they are.

Shape legend: T tokens, E experts, n kept experts (and shared ones with a gate), H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.calibration.observer import ProgressiveObserver
from toolkit.calibration.passes import ObservedSource, layerwise_pass
from toolkit.cuts import DenseBlock, ExpertsCut, LayersCut, Plan, WidthCut, check_dense, check_plan, masked, with_fixed_gates
from toolkit.cuts.width import ChannelMask
from toolkit.moe import (
    Batch,
    BlockActivations,
    MoEBlock,
    ObservedBatch,
    StreamedModel,
    find_blocks,
    layers_of,
    restricted,
)
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError

RIDGE = 1e-6  # λ
CONSTANT = 1e-6  # gate weights that vary by less, relative to their mean, are constant
CHUNK_NUMBERS = 2**25  # of F in float64 at a time: 256 MiB


@torch.no_grad()
def fit_dense(model: PreTrainedModel | StreamedModel, plan: Plan, batches: Sequence[Batch]) -> Plan:
    """`plan` as one that writes the dense form, with the weights of every kept expert.

    `model`: the original, loaded or streamed (one decoder layer in memory). `batches` as for `calibrate`; each rank passes its
    own. Raises PollardError for families without a dense twin, where the plan is another model's, and where the tokens are none
    or the numbers not finite.
    """
    whole = model.model if isinstance(model, StreamedModel) else model.eval()
    check_plan(whole, plan)
    check_dense(whole.config, plan)
    layers = plan.cut(LayersCut)
    only = plan.model_copy(update={"cuts": [layers]}) if layers else None
    with masked(whole, only) if only else nullcontext():
        fit = DenseFit(whole, plan)
        layerwise_pass(model, [ObservedSource(list(batches), [])], fit)
    return plan.model_copy(update={"form": "dense", "dense": fit.blocks})


@dataclass
class _Sums:
    """Of one block, over the tokens that count; float64."""

    G_nn: torch.Tensor
    b_n: torch.Tensor
    gate_n: torch.Tensor
    gate_square_n: torch.Tensor
    target: torch.Tensor  # Σ ‖y‖²
    tokens: torch.Tensor

    @classmethod
    def zeros(cls, n: int) -> "_Sums":
        def zero(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zero(n, n), zero(n), zero(n), zero(n), zero(), zero())

    def add(self, other: "_Sums") -> None:
        for name, tensor in vars(other).items():
            setattr(self, name, getattr(self, name) + tensor)

    def error(self, c_n: torch.Tensor) -> float:
        """Σ ‖Σ_e c_e f_e − y‖² / Σ ‖y‖²."""
        found = c_n @ self.G_nn @ c_n - 2 * c_n @ self.b_n + self.target
        return float(found.clamp(min=0) / self.target.clamp(min=torch.finfo(torch.float64).tiny))


class DenseFit(ProgressiveObserver):
    """Finds the coefficients of every block; `blocks` after the pass."""

    def __init__(self, model: PreTrainedModel, plan: Plan) -> None:
        """`model`: with the layers that stay only."""
        self.model, self.plan = model, plan
        experts, width, found = plan.cut(ExpertsCut), plan.cut(WidthCut), find_blocks(model)
        self.kept = {b.name: experts.kept[b.name] if experts else list(range(b.expert_count)) for b in found}
        self.path, layers = layers_of(model, found)
        self.names = [name for name, _ in layers.named_children()]  # numbers of the original
        self.masks: list[ChannelMask] = width.masks(model, plan) if width else []
        self.blocks: dict[str, DenseBlock] = {}
        self.number = -1  # of the layer at work
        self.here: Sequence[MoEBlock] = ()
        self.sums: dict[str, _Sums] = {}
        self.targets: dict[str, torch.Tensor] = {}  # y [T, H] of the batch at work, per block

    def on_layer_start(self, blocks: Sequence[MoEBlock]) -> None:
        self.number += 1
        self.here = blocks
        self.sums = {b.name: _Sums.zeros(len(self.kept[b.name]) + (shared_parts(b) is not None)) for b in blocks}

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        y_TH = activations.routed_TH
        if parts := shared_parts(self._block(activations)):
            shared, gate = parts
            y_TH = y_TH + gate(activations.hidden_TH).sigmoid() * shared(activations.hidden_TH)
        self.targets[activations.block] = y_TH

    def on_pruned_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        block, y_TH = self._block(activations), self.targets.pop(activations.block)
        kept, tokens = self.kept[block.name], self.plan.tokens
        rows = (batch.real if tokens == "all" else getattr(batch, tokens)).to(y_TH.device).nonzero().flatten()
        per_token = (len(kept) + 1) * activations.hidden_TH.shape[1]
        for part in rows.split(max(1, CHUNK_NUMBERS // per_token)):
            self.sums[block.name].add(_sums_of(activations, block, kept, part, y_TH[part]))

    def _block(self, activations: BlockActivations) -> MoEBlock:
        return next(block for block in self.here if block.name == activations.block)

    @contextmanager
    def undecided_layer(self) -> Iterator[None]:
        """Cut, and routed by the model's own routers."""
        with self._narrow() as stack:
            for block in self.here:
                stack.enter_context(restricted(block, self.kept[block.name], self.plan.experts_per_token))
            yield

    def on_layer_end(self) -> None:
        self.targets = {}
        for name, mine in self.sums.items():
            total = _Sums.zeros(len(mine.b_n))
            for part in gather(mine):
                total.add(part)
            self.blocks[name] = _solved(name, total, len(self.kept[name]))

    @contextmanager
    def pruned_layer(self) -> Iterator[None]:
        """As the dense form computes it."""
        decided = {block.name: self.blocks[block.name] for block in self.here}
        with self._narrow(), with_fixed_gates(self.model, decided, self.kept) if decided else nullcontext():
            yield

    @contextmanager
    def _narrow(self) -> Iterator[ExitStack]:
        """The layer at work with the channels that stay."""
        prefix = f"{self.path}.{self.names[self.number]}."
        with ExitStack() as stack:
            for mask in self.masks:
                if f"{mask.name}.".startswith(prefix):
                    stack.enter_context(mask.applied())
            yield stack


def shared_parts(block: MoEBlock) -> tuple[nn.Module, nn.Module] | None:
    """The shared experts of a block and the linear layer whose sigmoid weighs them; None where they have no such gate."""
    shared = [child for name, child in block.module.named_children() if name.startswith("shared")]
    gates = [child for child in shared if isinstance(child, nn.Linear)]
    others = [child for child in shared if not isinstance(child, nn.Linear)]
    return (others[0], gates[0]) if gates and others else None


def _sums_of(
    activations: BlockActivations, block: MoEBlock, kept: Sequence[int], rows: torch.Tensor, y_TH: torch.Tensor
) -> _Sums:
    hidden_TH = activations.hidden_TH[rows]
    outputs = [activations.run_expert(hidden_TH, expert) for expert in kept]
    gate_TE = hidden_TH.new_zeros(len(rows), block.expert_count, dtype=torch.float64)
    gate_TE.scatter_add_(1, activations.index_TK[rows], activations.gate_TK[rows].double())
    gate_Tn = gate_TE[:, kept]
    if parts := shared_parts(block):
        shared, gate = parts
        outputs.append(shared(hidden_TH))
        gate_Tn = torch.cat([gate_Tn, gate(hidden_TH).sigmoid().double()], 1)
    F_nTH = torch.stack(outputs).double()
    F_nX, y_X = F_nTH.flatten(1), y_TH.double().flatten()
    sums = _Sums(
        F_nX @ F_nX.T, F_nX @ y_X, gate_Tn.sum(0), gate_Tn.square().sum(0), y_X @ y_X, y_X.new_tensor(float(len(rows)))
    )  # fmt: skip
    return _Sums(**{name: tensor.cpu() for name, tensor in vars(sums).items()})


def _solved(name: str, sums: _Sums, kept: int) -> DenseBlock:
    """The coefficients of one block, from the sums over all ranks."""
    if not sums.tokens:
        raise PollardError(
            f"No token of the calibration data entered {name}: the dense form cannot weigh its experts.",
            code="calibration.no-tokens",
        )
    if not all(tensor.isfinite().all() for tensor in vars(sums).values()):
        raise PollardError(
            f"The experts' outputs are not finite ({name}). Try model.dtype=float32.", code="calibration.not-finite"
        )
    mean_n = sums.gate_n / sums.tokens
    variance_n = (sums.gate_square_n / sums.tokens - mean_n.square()).clamp(min=0)
    c_n = mean_n
    if not (variance_n.sqrt() <= CONSTANT * mean_n.abs()).all():
        G_nn = sums.G_nn + RIDGE * sums.G_nn.diagonal().mean() * torch.eye(len(mean_n), dtype=torch.float64)
        fitted_n = mean_n + torch.linalg.lstsq(G_nn, sums.b_n - sums.G_nn @ mean_n, driver="gelsd").solution
        c_n = fitted_n if sums.error(fitted_n) <= sums.error(mean_n) else mean_n
    shared = float(c_n[kept]) if len(c_n) > kept else 1.0
    return DenseBlock(
        coefficients=c_n[:kept].tolist(), shared=shared, error=sums.error(c_n), mean_gate_error=sums.error(mean_n)
    )  # fmt: skip
