"""The dev loss of plans, as if they were cut: measured once, and kept in a file that serves every limit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from toolkit.cuts import Plan
from toolkit.evaluation import Loss, masked_losses
from toolkit.moe import StreamedModel
from toolkit.pipeline.loss_file import LossFile
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of
from toolkit.runtime.formatting import loss as nats


class PlanLosses:
    """`fingerprint`: of the model, and of what the loss is measured on."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.file = LossFile(path, fingerprint)

    def get(self, plan: Plan | None) -> float | None:
        """None: not finite. Raises KeyError for what was not measured."""
        return self.file.losses[key_of(plan)]

    def missing(self, plans: Sequence[Plan | None]) -> list[Plan | None]:
        """Each once."""
        return list({key: plan for plan in plans if (key := key_of(plan)) not in self.file.losses}.values())

    def measure(
        self,
        model: PreTrainedModel | StreamedModel,
        plans: Mapping[str, Plan | None],
        batches: Sequence[dict[str, torch.Tensor]],
    ) -> None:
        """Of the plans that are missing (None: the original), by their names for people, on every rank; each is kept as soon as
        it is known."""
        todo, names = self.missing(list(plans.values())), {key_of(plan): name for name, plan in plans.items()}

        def keep(number: int, found: Loss) -> None:
            self.file.add(key_of(todo[number]), found.mean)
            say(f"  {number + 1}/{len(todo)} {names[key_of(todo[number])]}: loss {nats(found.finite)}")

        masked_losses(model, todo, batches, keep)


def key_of(plan: Plan | None) -> str:
    return "original" if plan is None else fingerprint_of(plan.choice(), plan.experts_per_token)
