import pytest
import torch
from conftest import logits_of, tiny_model

from toolkit.moe import BlockActivations, find_blocks, observing


def watched(model) -> list[BlockActivations]:
    seen: list[BlockActivations] = []
    with observing(model, seen.append):
        logits_of(model)
    return seen


def test_the_residual_stream_is_what_the_last_norm_got_and_y_comes_on_top(family: str) -> None:
    model = tiny_model(family)
    got: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: got.append(args[0].flatten(0, 1)))
            layer.register_forward_hook(lambda m, a, out: after.append((out[0] if isinstance(out, tuple) else out).flatten(0, 1)))
    seen = watched(model)
    assert len(seen) == len(got)
    for s, h, out in zip(seen, got, after, strict=True):
        assert torch.equal(s.residual_TH, h)
        if not any("shared" in name for name, _ in model.named_modules()):  # shared experts are no part of y
            torch.testing.assert_close(s.residual_TH + s.routed_TH, out, atol=1e-5, rtol=1e-5)


def test_probabilities_are_the_softmax_of_the_routers_logits(family: str) -> None:
    model = tiny_model(family)
    for s, block in zip(watched(model), find_blocks(model), strict=True):
        logits = s.router_input_TH @ block.router.weight.T + getattr(block.router, "bias", 0)
        torch.testing.assert_close(s.logits_TE, logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(s.probability_TE, logits.double().softmax(-1), atol=1e-5, rtol=1e-4)


def test_a_router_that_scores_otherwise_has_no_probabilities() -> None:
    model = tiny_model("deepseek_v3", n_routed_experts=8, n_group=1, topk_group=1, first_k_dense_replace=0, q_lora_rank=None,
                       kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, n_shared_experts=1)  # fmt: skip
    seen = watched(model)
    assert seen and all(s.probability_TE is None and s.logits_TE is not None for s in seen)  # sigmoid


@pytest.mark.parametrize("name", ["residual_TH", "probability_TE"])
def test_nothing_of_it_stays_on_the_model(name: str) -> None:
    model = tiny_model("mixtral")
    assert all(getattr(s, name) is not None for s in watched(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
