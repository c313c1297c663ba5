"""What is removed: kinds of cuts, the plan that holds them, and the checkpoint without what is cut."""

from toolkit.cuts.checkpoint import prune_checkpoint

__all__ = ["prune_checkpoint"]
