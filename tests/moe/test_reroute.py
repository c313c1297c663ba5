"""The law: a rerouted token is the token of the model whose router has only those rows."""

import pytest
import torch
from conftest import logits_of, tiny_model

from toolkit.moe import BlockActivations, Rerouter, find_blocks, observing, restricted, same_routing
from toolkit.runtime.errors import PollardError

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
    with pytest.raises(PollardError, match=r"does not choose as it did in the model\. .* choose another criterion\."):
        Rerouter(block, seen._replace(gate_TK=seen.gate_TK * 2))
    with pytest.raises(PollardError, match="did not run before its experts"):
        Rerouter(block, seen._replace(logits_TE=None, router_input_TH=None))
