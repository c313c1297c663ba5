"""Which layers a model cannot do without."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from toolkit.cuts import LayersCut, Plan, check_plan
from toolkit.moe import find_blocks
from toolkit.runtime.errors import PollardError

Refusal = Callable[[Sequence[int]], str | None]


def plan_of_layers(model: PreTrainedModel, kept: Sequence[int]) -> Plan:
    """A plan that drops layers and nothing else."""
    cut = LayersCut.of(model, kept, "being chosen")
    return Plan(model=model.config._name_or_path, experts_per_token=find_blocks(model)[0].experts_per_token, cuts=[cut])


def refusal_of(model: PreTrainedModel) -> Refusal:
    """A function that says why `model`, which may be without weights, cannot be left with some layers only; None where it can."""

    def refusal(kept: Sequence[int]) -> str | None:
        try:
            check_plan(model, plan_of_layers(model, kept))
        except PollardError as error:
            return str(error)
        return None

    return refusal
