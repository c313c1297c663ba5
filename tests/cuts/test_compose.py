"""Law: applying the composed plan leaves what applying one plan after the other leaves, bit for bit."""

import copy
from collections.abc import Sequence

import pytest
import torch
from conftest import raises, tiny_model
from drawn_plan import drawn_plan

from toolkit.cuts import apply_plan, compose

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2")  # the last two: shared experts; the last: a dense layer first, too
Step = tuple[int, int | None, Sequence[int] | None]  # experts, width, layers that stay


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "steps",
    [
        ((6, None, None), (4, None, None)),
        ((8, 16, None), (8, 8, None)),
        ((6, 16, None), (4, None, None)),  # rows of channels go with their experts
        ((6, None, None), (4, 8, None)),
        ((8, None, (0, 2, 3)), (8, None, (0, 2))),
        ((6, 16, (0, 2, 3)), (4, 8, (1, 2))),
        ((6, 16, None), (4, None, (1, 3))),
        ((6, None, (1, 2, 3)), (4, 16, None)),
    ],
)
def test_one_plan_after_the_other_is_the_composed_plan(family: str, steps: tuple[Step, Step]) -> None:
    model = tiny_model(family, num_hidden_layers=4)
    between, at_once = copy.deepcopy(model), copy.deepcopy(model)
    first = drawn_plan(between, *steps[0], seed=0)
    apply_plan(between, first)
    second = drawn_plan(between, *steps[1], seed=1)
    one_by_one = apply_plan(between, second).state_dict()
    composed = compose(first, second)
    assert composed.model == first.model and len(composed.cuts) == len({cut.kind for cut in (*first.cuts, *second.cuts)})
    found = apply_plan(at_once, composed).state_dict()
    assert found.keys() == one_by_one.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in one_by_one.items())


def test_a_plan_without_experts_says_so() -> None:
    model = tiny_model("mixtral")
    only_width = drawn_plan(model, 8, 16)
    only_width.cuts.pop(0)
    with raises("plan.no-experts-cut", "tiny"):
        compose(drawn_plan(model, 6), only_width)
