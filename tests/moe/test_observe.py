import pytest
import torch
import torch.nn.functional as F
from conftest import logits_of, tiny_model

from toolkit.moe import BlockActivations, find_blocks, observe, observing, split_mask


def seen_by(model, length: int = 24) -> tuple[list[BlockActivations], torch.Tensor]:
    seen: list[BlockActivations] = []
    with observing(model, seen.append):
        logits = logits_of(model, length)
    return seen, logits


def test_a_watched_model_answers_as_an_unwatched_one(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    seen, observed = seen_by(model)
    torch.testing.assert_close(observed, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_of(model), before)  # and afterwards nothing is left of the observing
    assert [s.block for s in seen] == [block.name for block in find_blocks(model)]


def test_gated_outputs_sum_to_what_the_experts_module_returns(family: str) -> None:
    model = tiny_model(family, torch.float64)
    returned: list[torch.Tensor] = []
    for block in find_blocks(model):
        block.experts.register_forward_hook(lambda module, args, output: returned.append(output))
    logits_of(model)
    seen, _ = seen_by(model)
    for s, stock in zip(seen, returned, strict=False):  # the second half of `returned` is the observed pass itself
        torch.testing.assert_close((s.outputs_TKH * s.gate_TK.unsqueeze(-1)).sum(1), stock, atol=1e-10, rtol=1e-10)


def test_outputs_are_the_experts_own_before_weighting() -> None:
    model = tiny_model("mixtral", torch.float64)
    block = find_blocks(model)[0]
    inputs: list[torch.Tensor] = []
    block.experts.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    seen = seen_by(model)[0][0]
    for t, k in ((0, 0), (17, 1), (47, 0)):
        gate, up = (block.experts.gate_up_proj[seen.index_TK[t, k]] @ inputs[0][t]).chunk(2)
        expected = block.experts.down_proj[seen.index_TK[t, k]] @ (F.silu(gate) * up)
        torch.testing.assert_close(seen.outputs_TKH[t, k], expected)


def test_the_stock_implementation_is_back_even_after_an_error() -> None:
    model = tiny_model("mixtral")
    before = model.config._experts_implementation
    with pytest.raises(RuntimeError, match="stop"), observing(model, lambda seen: (_ for _ in ()).throw(RuntimeError("stop"))):
        logits_of(model)
    assert model.config._experts_implementation == before


# Padding: the first sequence's last eight tokens. Whoever asks for every expert gets them for real tokens, and the model answers
# as it does otherwise.
def test_every_expert_says_what_it_says_when_it_is_chosen(family: str) -> None:
    model = tiny_model(family)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 12:] = 0
    batch = {"input_ids": torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(1)), "attention_mask": mask}
    inputs, observed_batch = split_mask(batch, torch.device("cpu"))
    rows = observed_batch.rows
    assert rows.real.tolist() == [*range(12), *range(20, 40)] and rows.padding.tolist() == list(range(12, 20))
    alone: list[BlockActivations] = []
    seen: list[BlockActivations] = []
    with torch.no_grad():
        with observing(model, alone.append):
            before = model(**inputs).logits
        with observing(model, seen.append, lambda block: rows):
            logits = model(**inputs).logits
    assert alone and all(s.every is None for s in alone)
    torch.testing.assert_close(logits[mask.bool()], before[mask.bool()], atol=1e-5, rtol=1e-5)
    for s, other in zip(seen, alone, strict=True):
        assert s.every is not None and s.every.rows is rows.real
        torch.testing.assert_close(s.outputs_TKH[rows.real], other.outputs_TKH[rows.real], atol=1e-5, rtol=1e-4)
        assert s.outputs_TKH.isfinite().all() and s.routed_TH.shape == other.routed_TH.shape
        F_REH = s.every.outputs_REH
        expected = torch.stack([s.run_expert(s.hidden_TH[rows.real], expert) for expert in range(8)], 1)
        torch.testing.assert_close(F_REH, expected, atol=1e-5, rtol=1e-4)
        chosen = s.index_TK[rows.real].unsqueeze(-1).expand(-1, -1, 32)
        assert torch.equal(F_REH.gather(1, chosen), s.outputs_TKH[rows.real])


def test_a_batch_whose_outputs_would_be_too_many_is_observed_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "EVERY_BYTES", 40 * 8 * 32 * 4 - 1)
    model, seen = tiny_model("mixtral"), []
    ids = torch.randint(3, 64, (2, 20))
    inputs, batch = split_mask({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.device("cpu"))
    with torch.no_grad(), observing(model, seen.append, lambda block: batch.rows):
        model(**inputs)
    assert seen and all(s.every is None for s in seen)


def observed(model) -> list[BlockActivations]:
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
    seen = observed(model)
    assert len(seen) == len(got)
    for s, h, out in zip(seen, got, after, strict=True):
        assert torch.equal(s.residual_TH, h)
        if not any("shared" in name for name, _ in model.named_modules()):  # shared experts are no part of y
            torch.testing.assert_close(s.residual_TH + s.routed_TH, out, atol=1e-5, rtol=1e-5)


def test_probabilities_are_the_softmax_of_the_routers_logits(family: str) -> None:
    model = tiny_model(family)
    for s, block in zip(observed(model), find_blocks(model), strict=True):
        logits = s.router_input_TH @ block.router.weight.T + getattr(block.router, "bias", 0)
        torch.testing.assert_close(s.logits_TE, logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(s.probability_TE, logits.double().softmax(-1), atol=1e-5, rtol=1e-4)


def test_a_router_that_scores_otherwise_has_no_probabilities() -> None:
    model = tiny_model("deepseek_v3", n_routed_experts=8, n_group=1, topk_group=1, first_k_dense_replace=0, q_lora_rank=None,
                       kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, n_shared_experts=1)  # fmt: skip
    seen = observed(model)
    assert seen and all(s.probability_TE is None and s.logits_TE is not None for s in seen)  # sigmoid


@pytest.mark.parametrize("name", ["residual_TH", "probability_TE"])
def test_nothing_of_it_stays_on_the_model(name: str) -> None:
    model = tiny_model("mixtral")
    assert all(getattr(s, name) is not None for s in observed(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
