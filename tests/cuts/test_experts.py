import pytest
import torch
from conftest import logits_of, plan_for, tiny_model

from toolkit.cuts.apply import apply_plan, masked
from toolkit.moe import find_blocks
from toolkit.runtime.errors import PollardError

KEPT = [1, 2, 6]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_slicing_is_masking(family: str, implementation: str) -> None:
    model = tiny_model(family)
    model.set_experts_implementation(implementation)
    plan = plan_for(model, KEPT)
    with masked(model, plan):
        expected = logits_of(model)
    sliced = apply_plan(model, plan)
    assert (logits_of(sliced) - expected).abs().max() <= 1e-5
    assert all(block.expert_count == len(KEPT) for block in find_blocks(sliced))


def test_a_sliced_model_trains_with_its_balancing_loss(family: str) -> None:
    model = tiny_model(family)
    apply_plan(model, plan_for(model, KEPT)).train()
    ids = torch.randint(3, 64, (2, 16))
    try:
        out = model(ids, labels=ids, output_router_logits=True)
    except TypeError:  # families that never expose their router's logits
        out = model(ids, labels=ids)
    out.loss.backward()
    assert all(block.experts.gate_up_proj.grad.isfinite().all() for block in find_blocks(model))


def test_shared_experts_are_never_sliced() -> None:
    for family in ("qwen2_moe", "deepseek_v2"):
        model = tiny_model(family)
        shared = {name: p.shape for name, p in model.named_parameters() if "shared" in name}
        assert shared
        apply_plan(model, plan_for(model, KEPT))
        assert {name: p.shape for name, p in model.named_parameters() if "shared" in name} == shared


def test_a_plan_for_another_model_is_refused_by_naming_the_blocks() -> None:
    plan = plan_for(tiny_model("mixtral"), KEPT)
    with pytest.raises(PollardError, match=r"does not name.*layers\.2\.mlp"):
        apply_plan(tiny_model("mixtral", num_hidden_layers=3), plan)
    with pytest.raises(PollardError, match=r"says 8 experts in model\.layers\.0\.mlp; the model has 6"):
        apply_plan(tiny_model("mixtral", num_local_experts=6), plan)
