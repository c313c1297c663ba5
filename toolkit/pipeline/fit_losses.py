"""The dev loss of plans, as if they were cut: measured once, and kept in a file that serves every limit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from toolkit.cuts import Plan
from toolkit.evaluation import Loss, masked_losses
from toolkit.moe import StreamedModel
from toolkit.runtime.distributed import is_main, on_main, say
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.runtime.formatting import loss as nats


class PlanLosses:
    """`fingerprint`: of the model, and of what the loss is measured on."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.known: dict[str, float | None] = on_main(self._read)

    def _read(self) -> dict[str, float | None]:
        try:
            found = json.loads(self.path.read_text())
            return dict(found["losses"]) if found["fingerprint"] == self.fingerprint else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def get(self, plan: Plan | None) -> float | None:
        """None: not finite. Raises KeyError for what was not measured."""
        return self.known[key_of(plan)]

    def missing(self, plans: Sequence[Plan | None]) -> list[Plan | None]:
        """Each once."""
        return list({key: plan for plan in plans if (key := key_of(plan)) not in self.known}.values())

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
            self.known[key_of(todo[number])] = found.finite
            if is_main():
                write_text(self.path, json.dumps({"fingerprint": self.fingerprint, "losses": self.known}) + "\n")
            say(f"  {number + 1}/{len(todo)} {names[key_of(todo[number])]}: loss {nats(found.finite)}")

        masked_losses(model, todo, batches, keep)


def key_of(plan: Plan | None) -> str:
    return "original" if plan is None else fingerprint_of(plan.choice(), plan.experts_per_token)
