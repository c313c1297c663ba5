"""The oracle's first half: a masked model is the original whose routers cannot see the pruned experts.

The check is independent of how `masked` works: the router's own linear layer is made to return −inf for them.
"""

import torch
from conftest import logits_of, plan_for, tiny_model
from families import minus_infinity

from toolkit.cuts.apply import masked

KEPT = [0, 3, 5, 6]


def test_masking_is_minus_infinity_in_the_routers_logits(family: str) -> None:
    model = tiny_model(family)
    with minus_infinity(model, KEPT):
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
