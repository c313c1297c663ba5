"""Refit: closed-form least-squares recovery of a cut model, without gradients, layer by layer."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from toolkit.moe import Batch
from toolkit.recovery.refit.checkpoint import refit_checkpoint
from toolkit.recovery.refit.passes import RefitModel, refit_layers
from toolkit.recovery.refit.results import BlockRefit, RefitResult

__all__ = ["BlockRefit", "RefitResult", "refit_checkpoint", "refit_model"]


def refit_model(
    original: PreTrainedModel, cut: PreTrainedModel, batches: Sequence[Batch], kept_layers: Sequence[int] | None = None
) -> RefitResult:
    """`refit_checkpoint` for loaded models: changes `cut` in place."""
    before = RefitModel(original)
    return refit_layers(before, RefitModel(cut), batches, list(kept_layers or range(len(before.layers))))
