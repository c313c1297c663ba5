"""Laws of plans that keep and activate other numbers of experts in each block: masked as if cut, and never written."""

import json
from pathlib import Path

import pytest
import torch
from conftest import logits_of, plan_for, raises, tiny_model
from families import minus_infinity
from transformers import PreTrainedModel

from toolkit.cuts import BlockPlan, ExpertsCut, Plan, apply_plan, masked, prune_checkpoint
from toolkit.moe import find_blocks
from toolkit.runtime.errors import PollardError

KEPT = ([1, 2, 6], [0, 2, 3, 5, 7], [1, 4])  # the third where a family has three blocks


def allocated(model: PreTrainedModel, active: tuple[int, ...] | None = None, **changes: object) -> Plan:
    """`active`: per block; None: 2 in all."""
    names = [block.name for block in find_blocks(model)]
    blocks = {name: BlockPlan(experts=8, kept=kept) for name, kept in zip(names, KEPT, strict=False)}
    own = {"experts_per_token": dict(zip(names, active, strict=False))} if active else {}
    settings = {"criterion": "by hand", "keep": 4, "allocation": "measured", **own, **changes}
    return Plan(model="tiny", experts_per_token=2, cuts=[ExpertsCut.of(blocks, **settings)])


@pytest.mark.parametrize("active", [None, (1, 2, 1)])
def test_masked_is_minus_infinity_for_every_other_expert(family: str, active: tuple[int, ...] | None) -> None:
    model = tiny_model(family)
    blocks, before = find_blocks(model), logits_of(model)
    with minus_infinity(model, {block.name: kept for block, kept in zip(blocks, KEPT, strict=False)}):
        for block, number in zip(blocks, active or (2, 2, 2), strict=False):
            block.router.top_k = number
        expected = logits_of(model)
    for block in blocks:
        block.router.top_k = 2
    with masked(model, allocated(model, active)):
        assert (logits_of(model) - expected).abs().max() <= 1e-5
    assert torch.equal(logits_of(model), before) and (expected - before).abs().max() > 1e-3


def test_each_block_is_the_uniform_plans_where_that_keeps_the_same() -> None:
    model = tiny_model("mixtral")
    plan = plan_for(model, KEPT[0])
    same = plan.model_copy(update={"cuts": [plan.experts.model_copy(update={"allocation": "measured"})]})
    with masked(model, plan):
        expected = logits_of(model)
    with masked(model, same):
        assert torch.equal(logits_of(model), expected)
    apply_plan(model, same)  # nothing in it differs per block
    assert (logits_of(model) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("active", [None, (1, 3)])
def test_it_survives_its_file_and_other_files_do_not_know_it(tmp_path: Path, active: tuple[int, ...] | None) -> None:
    model = tiny_model("mixtral")
    plan = allocated(model, active)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    plan_for(model, KEPT[0]).save(tmp_path / "uniform.json")
    (cut,) = json.loads((tmp_path / "uniform.json").read_text())["cuts"]
    assert not {"allocation", "experts_per_token"} & cut.keys()
    assert plan_for(model, KEPT[0]).choice() == {block.name: KEPT[0] for block in find_blocks(model)}
    assert allocated(model, (1, 2)).choice() != allocated(model, (2, 1)).choice() != allocated(model).choice()


@pytest.mark.parametrize("active", [None, (1, 2)])
def test_nothing_is_written_of_it(tmp_path: Path, active: tuple[int, ...] | None) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "original")
    with raises("plan.counts-per-layer", "3, 5 experts", "mixtral", "masked and measured", "Keep 4 in every block"):
        prune_checkpoint(tmp_path / "original", allocated(model, active), tmp_path / "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]
    with raises("plan.counts-per-layer"):
        apply_plan(model, allocated(model, active))
    assert [block.expert_count for block in find_blocks(model)] == [8, 8]  # as it was


def test_other_counts_are_a_mistake_where_nothing_says_that_they_are_meant() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(ValueError, match="every block must keep 4"):
        allocated(model, allocation=None)
    uniform = plan_for(model, KEPT[0]).experts.model_dump()
    with pytest.raises(ValueError, match="belongs to an allocation"):
        ExpertsCut.model_validate(uniform | {"experts_per_token": dict.fromkeys(uniform["kept"], 1)})
    with pytest.raises(ValueError, match="names every block"):
        allocated(model, experts_per_token={"model.layers.0.mlp": 1})
    with pytest.raises(ValueError, match="cannot activate 4"):
        allocated(model, (4, 1))
    with pytest.raises(ValueError, match="cannot activate 0"):
        allocated(model, (0, 2))


def test_no_block_activates_more_than_the_original() -> None:
    model = tiny_model("mixtral")
    with raises("plan.raises-top-k", 3), masked(model, allocated(model, (1, 3))):
        pass


def test_the_dense_form_is_refused() -> None:
    plan = allocated(tiny_model("mixtral"))
    dense = {name: {"coefficients": [1.0] * len(kept)} for name, kept in plan.experts.kept.items()}
    with pytest.raises((ValueError, PollardError), match="other numbers of experts in each"):
        Plan.model_validate(plan.model_dump() | {"form": "dense", "dense": dense})
