"""The models that a run compares."""

from enum import StrEnum


class Role(StrEnum):
    """A model's part in a run; its value is the name in files and messages. In the order in which reports show them."""

    ORIGINAL = "original"
    PRUNED = "pruned"
    REFITTED = "refitted"  # the pruned model, fitted to the original layer by layer
    RECOVERED = "recovered"
    SKIPPING = "skipping"  # the last of those, once more, leaving out experts while it runs
    CONTROL = "control"  # the original, fine-tuned as the pruned model is
