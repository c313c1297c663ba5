"""Fewer experts per token than the model was built with.

The law: a rerouted token is the token of the model whose router has only those rows.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import logits_of, plan_for, raises, tiny_model
from families import tiny_family
from transformers import AutoModelForCausalLM

from toolkit.calibration import calibrate
from toolkit.cuts.apply import check_plan, masked
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.moe import BlockActivations, Rerouter, find_blocks, observing, override_top_k, restricted, same_routing
from toolkit.runtime.errors import PollardError
from toolkit.selection import select

KEYS = {"qwen3_moe": "num_experts_per_tok", "gemma4": "top_k_experts", "aria": "moe_topk", "ernie4_5_moe": "moe_k"}
KEYS |= {"hunyuan_v1_moe": "moe_topk", "kimi_linear": "num_experts_per_token", "deepseek_v2": "num_experts_per_tok"}
ids = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(2))
BATCH = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_four_of_128_experts_of_a_model_that_activates_eight(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", num_experts=128, num_local_experts=128, num_experts_per_tok=8)
    model.save_pretrained(tmp_path / "original")
    plan = select(calibrate(model, [BATCH], experts_per_token=4), "weighted_ean", keep=4)
    assert (plan.keep, plan.experts_per_token) == (4, 4)
    with masked(model, plan):
        expected = logits_of(model)
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "pruned")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert (logits_of(pruned) - expected).abs().max() <= 1e-5
    assert [(b.expert_count, b.experts_per_token) for b in find_blocks(pruned)] == [(4, 4), (4, 4)]
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["num_experts_per_tok"] == 4
    pruned.train()(input_ids=ids, labels=ids, output_router_logits=True).loss.backward()


@pytest.mark.parametrize("family", KEYS)
def test_the_number_is_written_under_the_familys_own_key(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    model.save_pretrained(tmp_path / "original")
    plan = plan_for(model, [0, 3, 5, 6])
    plan.experts_per_token = 1
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "pruned")
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())[KEYS[family]] == 1


def test_calibration_runs_with_the_number_of_the_pruned_model(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    statistics = calibrate(model, [BATCH], experts_per_token=1)
    for block in statistics.blocks:
        assert statistics.get(block, "count").sum() == ids.numel()  # one expert for each token
        assert statistics.about.blocks[block].experts_per_token == 1
    assert torch.equal(logits_of(model), before)
    seen: list[BlockActivations] = []
    with override_top_k(model, 1), observing(model, seen.append):
        logits_of(model)
    assert all(s.index_TK.shape[1] == 1 for s in seen)


def test_a_router_that_cannot_choose_fewer_is_refused_rather_than_believed() -> None:
    model = tiny_family("phimoe")
    told = ("model.fixed-top-k", "layers.0.mlp", "PhimoeTopKRouter", "2 experts per token, never 1")
    with raises(*told):
        calibrate(model, [BATCH], experts_per_token=1)
    with raises(*told), masked(model, plan_for(model, [4])):
        logits_of(model)


@pytest.mark.parametrize("number", [0, 3])
def test_an_impossible_number_is_refused(number: int) -> None:
    with pytest.raises(PollardError, match=f"experts_per_token is {number}: give 1…2"):
        calibrate(tiny_model("mixtral"), [BATCH], experts_per_token=number)


def test_a_plan_that_activates_more_than_the_model_is_refused() -> None:
    plan = plan_for(tiny_model("mixtral", num_experts_per_tok=3), [0, 1, 2, 3])
    plan.experts_per_token = 3
    with raises("plan.raises-top-k", "activates 2"):
        check_plan(tiny_model("mixtral"), plan)


KEPT = [0, 3, 5, 6]


def first_block(model) -> tuple:
    seen: list[BlockActivations] = []
    with observing(model, seen.append), torch.no_grad():
        logits_of(model)
    return find_blocks(model)[0], seen[0]


@pytest.mark.parametrize("from_logits", [True, False])
def test_routing_over_a_subset_is_the_masked_models(family: str, from_logits: bool) -> None:
    model = tiny_model(family)
    block, seen = first_block(model)
    rerouter = Rerouter(block, seen if from_logits else seen._replace(logits_TE=None))
    assert rerouter.from_logits == from_logits
    chosen: list[tuple[torch.Tensor, torch.Tensor]] = []
    block.experts.register_forward_pre_hook(lambda module, args: chosen.append((args[1], args[2])))
    with restricted(block, KEPT):
        logits_of(model)
    assert same_routing(rerouter(rerouter.inputs(seen), KEPT), chosen[0], 8)
    assert set(chosen[0][0].flatten().tolist()) <= set(KEPT)


def test_given_just_its_choice_a_token_keeps_its_gates_where_they_are_normalised_over_it() -> None:
    block, seen = first_block(tiny_model("mixtral"))
    rerouter = Rerouter(block, seen)
    assert same_routing(rerouter.gate_weights(seen.logits_TE, seen.index_TK), (seen.index_TK, seen.gate_TK), 8)


def test_the_models_router_is_not_touched() -> None:
    model = tiny_model("gpt_oss")
    before = logits_of(model)
    block, seen = first_block(model)
    Rerouter(block, seen)(seen.logits_TE, KEPT)
    assert torch.equal(logits_of(model), before)


def test_a_choice_with_other_weights_is_not_the_same() -> None:
    index, gate = torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]])
    assert same_routing((index, gate), (index.flip(1), gate.flip(1)), 3)
    assert not same_routing((index, gate), (index, gate.flip(1)), 3)
    assert not same_routing((index, gate), (index[:, :1], gate[:, :1]), 3)


def test_a_router_that_cannot_be_called_alone_is_refused() -> None:
    block, seen = first_block(tiny_model("mixtral"))
    with raises("reconstruction.router-differs"):
        Rerouter(block, seen._replace(gate_TK=seen.gate_TK * 2))
    with raises("reconstruction.router-not-run"):
        Rerouter(block, seen._replace(logits_TE=None, router_input_TH=None))
