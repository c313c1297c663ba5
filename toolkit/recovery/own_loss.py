"""A loss of the user's own: a function of logits and targets that says one loss per completion token (`finetuning.loss`).

    def focal(logits, targets):                                           # [N, V] float32, [N] -> [N]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return (1 - (-losses).exp()) ** 2 * losses

Sums, ranks, accumulated batches and packing are not its business, so it cannot get them wrong: cross entropy written so is the
training without it. The dev loss stays the cross entropy, by which trainings compare.

trl's `compute_loss_func` has to normalise by itself, computes every batch twice, and is deprecated (1.16); its advice, to
override `compute_loss`, is followed here. Shape legend: N completion tokens, V vocabulary, B sequences, S positions.
"""

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from toolkit.moe import logits_at
from toolkit.recovery.packing import IGNORED, Batch
from toolkit.recovery.token_losses import Part, log_parts, mean_over_step
from toolkit.recovery.trainer import RecoveryTrainer
from toolkit.runtime.errors import PollardError
from toolkit.runtime.own_function import load_function

KEY = "finetuning.loss"


class OwnLoss:
    """The function that a recipe names, checked at every call."""

    def __init__(self, name: str) -> None:
        """Raises PollardError where it cannot be imported, or takes anything but (logits, targets)."""
        self.name, self.function = name, _loaded(name)

    def __call__(self, logits_NV: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """The losses [N] of N tokens. Raises PollardError for what the function raises, and for anything else that it returns."""
        try:
            losses_N = self.function(logits_NV, target_N)
        except Exception as error:
            raise PollardError(f"{KEY} {self.name} fails: {type(error).__name__}: {error}", code="recovery.own-loss") from error
        shape = list(losses_N.shape) if isinstance(losses_N, torch.Tensor) else type(losses_N).__name__
        if shape != [len(target_N)]:
            raise PollardError(
                f"{KEY} {self.name} returned {shape} for {len(target_N)} tokens: it must return one loss per token, "
                f'[{len(target_N)}] (reduction="none"). How they are averaged over batches and ranks is not its business.',
                code="recovery.own-loss-shape",
            )
        if not losses_N.requires_grad:
            raise PollardError(
                f"{KEY} {self.name} returned losses without a gradient: they must come from the logits.",
                code="recovery.own-loss-gradient",
            )
        return losses_N


def _loaded(name: str) -> Callable[..., Any]:
    function = load_function(name, KEY, "loss")
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # some that are written in C have no signature
        pass
    except TypeError as error:
        raise PollardError(
            f"{KEY} {name} takes {inspect.signature(function)}: it must take (logits, targets), [N, V] and [N] ({error}).",
            code="loss.signature",
        ) from None
    return function


class OwnLossTrainer(RecoveryTrainer):
    """The trainer with a loss of the user's own. Logs the `cross_entropy` of the same tokens beside it."""

    def __init__(self, *args: Any, own_loss: OwnLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_loss = own_loss

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not cast(nn.Module, self.model).training:  # the dev loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BS = inputs.pop("labels")[:, 1:]
        counted_BS = labels_BS != IGNORED
        target_N = labels_BS[counted_BS]
        logits_NV = logits_at(model, inputs, counted_BS).float()
        own = Part(self.own_loss(logits_NV, target_N).sum(), counted_BS.sum())
        with torch.no_grad():
            cross = Part(cross_entropy(logits_NV, target_N, reduction="sum"), counted_BS.sum())
        log_parts(self, {"cross_entropy": cross}, inputs)
        return mean_over_step(self, own, num_items_in_batch)
