"""What a run's models lost beside its task, and what to doubt of it.

{"name": "Pollard's texts", "loss": 2.91, "kl": 0.31, "agreement": 0.71, "tokens": 7012, "texts": 64, …}
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from toolkit.recipe.roles import Role
from toolkit.report.measurements import FileFacts, Number
from toolkit.runtime.formatting import loss, percent, signed_loss

CLEAR_RISE = 0.1
"""Nats per token by which a loss must rise for a warning: as if one in ten choices more were left open at each token (e^0.1 =
1.105). The loss of the same model on other texts of the same kinds differs by less."""
UNKNOWN_SHARE = 0.1
"""Of the tokens; where more stand for text that the tokenizer does not know, the loss says little."""


class OffTaskLoss(FileFacts):
    """Of one model (evaluation/<role>.off_task.json): means over tokens. `kl` and `agreement`, of the next tokens with the
    original's, are None for the original itself, and where it was not measured."""

    name: str
    loss: Number | None  # nats per token; None: not finite
    kl: Number | None  # nats per token
    agreement: Number | None  # share of the tokens, in [0, 1]
    tokens: int
    texts: int
    left_out: int = 0
    unknown: int = 0
    uniform_loss: Number | None = None  # of a model that finds all tokens equally likely


class Training(NamedTuple):
    """A fine-tuning: its method, the role of the model that it began with, and that of the one it made; its losses as logged."""

    method: str
    start: Role
    end: Role
    losses: Sequence[Number | None]


def off_task_warnings(off_task: Mapping[Role, OffTaskLoss], trainings: Sequence[Training]) -> list[str]:
    """Where the texts say little of these models, that; else each training that made a model clearly worse beside its task."""
    if not off_task:
        return []
    first = next(iter(off_task.values()))
    if first.unknown > UNKNOWN_SHARE * first.tokens:
        return [
            f"{percent(first.unknown / first.tokens)} of the tokens of {first.name} stand for text that the tokenizer does not "
            f"know: what is lost beside the task, the loss on them does not tell. {OTHER_DATA}"
        ]
    original = off_task.get(Role.ORIGINAL)
    if original and original.loss is not None and original.uniform_loss is not None and original.loss >= original.uniform_loss:
        return [
            f"The original itself cannot read {first.name} (loss {loss(original.loss)} nats per token, by guessing "
            f"{loss(original.uniform_loss)}): what is lost beside the task, these do not tell. {OTHER_DATA}"
        ]
    return [warning for training in trainings if (warning := _forgetting(off_task, training))]


OTHER_DATA = "`evaluation.off_task` can name a task or a text that it knows."


def _forgetting(off_task: Mapping[Role, OffTaskLoss], training: Training) -> str:
    """A warning where the loss beside the task clearly rose while that of the training fell; else empty."""
    before, after = off_task.get(training.start), off_task.get(training.end)
    losses = [value for value in training.losses if value is not None]
    if not before or not after or before.loss is None or len(losses) < 2 or losses[-1] >= losses[0]:
        return ""
    if after.loss is not None and after.loss - before.loss <= CLEAR_RISE:
        return ""
    rise = "not finite" if after.loss is None else f"{signed_loss(after.loss - before.loss)} nats per token"
    return (
        f"Fine-tuning ({training.method}) made the {training.end} model worse beside its task while its training loss "
        f"fell ({loss(losses[0])} -> {loss(losses[-1])}): its loss on {after.name} went from {loss(before.loss)} to "
        f"{loss(after.loss)} ({rise}). Where that counts, learn from the original as well (finetuning.teacher), add other data "
        "(finetuning.data), or train for fewer steps."
    )
