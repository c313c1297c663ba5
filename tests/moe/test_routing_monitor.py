"""Law: what the hooks count is what the routers chose, without padding, and only when asked to."""

import torch
from conftest import tiny_model

from toolkit.moe import RoutingMonitor, observing
from toolkit.moe.routing_monitor import block_name


def test_counts_are_the_routers_choices_of_real_tokens(family: str) -> None:
    model = tiny_model(family).train()
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    chosen = {}
    with observing(model, lambda seen: chosen.update({seen.block: seen.index_TK})):
        model(ids, attention_mask=mask, use_cache=False)
    use = RoutingMonitor(model)
    for use.counting in (False, True):
        model(ids, attention_mask=mask, use_cache=False)
    counts, tokens = use.take()
    real = mask.flatten().bool()
    assert counts == {name: torch.bincount(index[real].flatten(), minlength=8).tolist() for name, index in chosen.items()}
    assert tokens == 2 * (12 + 7)
    assert use.take() == ({}, 0)


def test_evaluation_between_two_steps_does_not_count() -> None:
    model = tiny_model("mixtral").eval()
    use = RoutingMonitor(model)
    use.counting = True
    ids = torch.ones(1, 4, dtype=torch.long)
    model(ids, attention_mask=ids)
    assert use.take() == ({}, 0)


def test_an_adapter_around_the_experts_leaves_the_blocks_name() -> None:
    assert block_name("model.layers.0.mlp.experts") == "model.layers.0.mlp"
    assert block_name("base_model.model.model.layers.0.mlp.experts.base_layer") == "model.layers.0.mlp"
    assert block_name("base_model.model.model.layers.0.mlp.experts.base_layer.base_layer") == "model.layers.0.mlp"
