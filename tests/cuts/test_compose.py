"""Law: applying the composed plan leaves what applying one plan after the other leaves, bit for bit."""

import copy
from collections.abc import Sequence

import pytest
import torch
from conftest import raises, tiny_model
from transformers import PreTrainedModel

from toolkit.cuts import Cut, ExpertsCut, LayersCut, Plan, WidthCut, apply_plan, compose
from toolkit.cuts.experts import BlockPlan
from toolkit.moe import channel_groups, find_blocks

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2")  # the last two: shared experts; the last: a dense layer first, too
Step = tuple[int, int | None, Sequence[int] | None]  # experts, width, layers that stay


def drawn_plan(model: PreTrainedModel, step: Step, seed: int) -> Plan:
    """A plan of that shape, its experts and channels drawn: those of each block others."""
    keep, width, layers = step
    draw = torch.Generator().manual_seed(seed)

    def chosen(number: int, of: int) -> list[int]:
        return torch.randperm(of, generator=draw)[:number].sort().values.tolist()

    cut = LayersCut.of(model, layers, "by hand") if layers else None
    blocks = [block for block in find_blocks(model) if cut is None or cut.rename(block.name, block.name)]
    choice = {b.name: BlockPlan(experts=b.expert_count, kept=chosen(keep, b.expert_count)) for b in blocks}
    cuts: list[Cut] = [ExpertsCut.of(choice, criterion="by hand", keep=keep)]
    if width:
        channels = {}
        for group in channel_groups(model, width):
            rows = [chosen(group.new_width, group.width) for _ in range(keep if group.experts else 1)]
            if cut is None or cut.rename(group.name, group.name):
                channels[group.name] = torch.tensor(rows if group.experts else rows[0])
        cuts.append(WidthCut(criterion="by hand", keep=width, channels=channels))
    return Plan(model="tiny", experts_per_token=2, cuts=[*cuts, *([cut] if cut else [])])


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
    first = drawn_plan(between, steps[0], seed=0)
    apply_plan(between, first)
    second = drawn_plan(between, steps[1], seed=1)
    one_by_one = apply_plan(between, second).state_dict()
    composed = compose(first, second)
    assert composed.model == first.model and len(composed.cuts) == len({cut.kind for cut in (*first.cuts, *second.cuts)})
    found = apply_plan(at_once, composed).state_dict()
    assert found.keys() == one_by_one.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in one_by_one.items())


def test_a_plan_without_experts_says_so() -> None:
    model = tiny_model("mixtral")
    only_width = drawn_plan(model, (8, 16, None), seed=0)
    only_width.cuts.pop(0)
    with raises("plan.no-experts-cut", "tiny"):
        compose(drawn_plan(model, (6, None, None), seed=0), only_width)
