"""A plan's cuts on a model, in memory or without weights: checked, applied, masked; and read off from it, per stored tensor.

Which parameters a plan changes is not decided by their names: the plan is applied to a model without weights, and the parameters
with another shape or name afterwards are affected. Only for their tensors are the cuts asked what stays.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from toolkit.cuts.cut import AffectedTensor, Cut, Indices, Shape, UnknownLayoutError
from toolkit.cuts.plan import KINDS, Plan


def check_plan(model: PreTrainedModel, plan: Plan) -> None:
    """Raises PollardError unless `plan` fits `model`, which may be without weights."""
    for cut in plan.cuts:
        cut.check(model, plan)


def apply_plan(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Removes what `plan` does not keep from `model` in place, and returns it. Raises PollardError as `check_plan` does."""
    check_plan(model, plan)
    for cut in in_order(plan):
        cut.apply(model, plan)
    return model


def in_order(plan: Plan) -> list[Cut]:
    """The plan's cuts in the order in which they are applied. It is of no consequence for what stays: cuts commute."""
    return sorted(plan.cuts, key=lambda cut: KINDS.index(type(cut)))


@contextmanager
def masked(model: PreTrainedModel, plan: Plan) -> Iterator[PreTrainedModel]:
    """`model` as if pruned by `plan` inside the context, unchanged after it (weights are neither copied nor removed)."""
    check_plan(model, plan)
    with ExitStack() as stack:
        for cut in reversed(in_order(plan)):  # a router that is masked is no longer the model's own: last
            stack.enter_context(cut.masked(model, plan))
        yield model


def renamed(plan: Plan, name: str, parameter: str) -> str | None:
    """The new name of a stored tensor or module that is, or becomes part of, `parameter`; None where it is gone."""
    for cut in plan.cuts:
        new = cut.rename(name, parameter)
        if new is None:
            return None
        name = new
    return name


def taken(plan: Plan, model: PreTrainedModel, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
    """By name, which part of stored tensors of the original `model` stays; of those not named everything. Raises
    UnknownLayoutError where two cuts shorten one axis, or a cut cannot say it."""
    found: dict[str, dict[int, npt.NDArray[np.int64]]] = defaultdict(dict)
    for cut in plan.cuts:
        for name, indices in cut.takes(model, plan, tensors).items():
            if found[name].keys() & indices.keys():
                raise UnknownLayoutError(f"two cuts shorten one axis of {name}")
            found[name] |= indices
    return found


def affected_parameters(model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan) -> Mapping[str, Shape | None]:
    """The parameters that `plan` changes, with their shapes in `pruned` (None: gone). `model` and `pruned`: the original and the
    model that the plan was applied to, both without weights."""
    before, after = shapes_of(model), shapes_of(pruned)
    found: dict[str, Shape | None] = {}
    for name, shape in before.items():
        new = renamed(plan, name, name)
        if new != name or after.get(name) != shape:
            found[name] = after[new] if new is not None else None
    return found


def shapes_of(model: PreTrainedModel) -> dict[str, Shape]:
    """The shapes of everything in a model's state."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
