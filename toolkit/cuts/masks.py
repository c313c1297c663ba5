"""A model that answers as if cut, also where one decoder layer at a time has weights.

    masks of the plan        of layer 3                             of the model
    experts                  router of model.layers.3.mlp
    width                    experts and MLPs of model.layers.3
    layers                                                          its list of layers is shorter
    the dense form                                                  fixed gate weights

They are made once, of a model that needs no weights for it. Those of the model are entered whenever it is at work; those of a
layer while that layer runs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel

from toolkit.cuts.apply import in_order, masked
from toolkit.cuts.cut import Mask
from toolkit.cuts.dense import with_fixed_gates
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.moe.layers import decoder_layers


@contextmanager
def masked_in_form(model: PreTrainedModel, plan: Plan | None) -> Iterator[PreTrainedModel]:
    """`masked`, and where the plan is for the dense form with its gate weights; the original itself for None."""
    with ExitStack() as stack:
        if plan is not None:
            _fix_gates(stack, model, plan)
            stack.enter_context(masked(model, plan))
        yield model


def _fix_gates(stack: ExitStack, model: PreTrainedModel, plan: Plan) -> None:
    if plan.dense is not None:
        experts = plan.cut(ExpertsCut)
        stack.enter_context(with_fixed_gates(model, plan.dense, experts.kept if experts else None))


class LayerwiseMasks:
    """The masks of a `plan` that was checked (None: of the original, none) for `model`, which may be without weights."""

    def __init__(self, model: PreTrainedModel, plan: Plan | None) -> None:
        self.model, self.plan = model, plan
        path, layers = decoder_layers(model)
        self.layers = list(range(len(layers)))  # the numbers of those that stay
        self._of_model: list[Mask] = []
        self._of_layer: dict[int, list[Mask]] = {number: [] for number in self.layers}
        if plan is None:
            return
        if cut := plan.cut(LayersCut):
            self.layers = cut.kept
        for mask in [mask for cut in reversed(in_order(plan)) for mask in cut.masks(model, plan)]:
            number = next((n for n in self._of_layer if f"{mask.name}.".startswith(f"{path}.{n}.")), None)
            (self._of_model if number is None else self._of_layer[number]).append(mask)

    @contextmanager
    def applied(self, number: int | None = None) -> Iterator[None]:
        """Inside the context the model is masked, and layer `number`, whose weights must be there."""
        with ExitStack() as stack:
            if self.plan is not None:
                _fix_gates(stack, self.model, self.plan)
            for mask in [*self._of_model, *(self._of_layer[number] if number is not None else [])]:
                stack.enter_context(mask.applied())
            yield
