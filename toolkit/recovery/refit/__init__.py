"""Refit: closed-form least-squares recovery of a cut model, without gradients, layer by layer."""

from toolkit.recovery.refit.results import BlockRefit, RefitResult

__all__ = ["BlockRefit", "RefitResult"]
