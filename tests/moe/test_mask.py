"""The oracle's first half: a masked model is the original whose routers cannot see the pruned experts.

The check is independent of how `masked` works: the router's own linear layer is made to return −inf for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from conftest import logits_of, plan_for, tiny_model
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe import find_blocks, masked

KEPT = [0, 3, 5, 6]


@contextmanager
def minus_infinity_for_pruned(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    routers = [block.router for block in find_blocks(model)]
    pruned = [expert for expert in range(8) if expert not in kept]
    linear, forward = nn.functional.linear, {id(router): router.forward for router in routers}

    def router_linear(*args, **kwargs):
        logits = linear(*args, **kwargs).clone()
        logits[..., pruned] = -torch.inf
        return logits

    def within(router: nn.Module):
        def call(*args, **kwargs):
            with mock.patch.object(nn.functional, "linear", router_linear):
                return forward[id(router)](*args, **kwargs)

        return call

    for router in routers:
        router.forward = within(router)
    yield
    for router in routers:
        del router.forward


def test_masking_is_minus_infinity_in_the_routers_logits(family: str) -> None:
    model = tiny_model(family)
    with minus_infinity_for_pruned(model, KEPT):
        expected = logits_of(model)
    with masked(model, plan_for(model, KEPT)):
        found = logits_of(model)
    assert (found - expected).abs().max() <= 1e-5
    assert (found - logits_of(model)).abs().max() > 1e-3  # or the mask would prove nothing


def test_a_model_is_itself_again_after_masking(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    with masked(model, plan_for(model, KEPT)):
        logits_of(model)
    assert torch.equal(logits_of(model), before)


def test_masking_nothing_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    with masked(model, plan_for(model, list(range(8)))):
        assert torch.equal(logits_of(model), before)
