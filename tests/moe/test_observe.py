import pytest
import torch
import torch.nn.functional as F
from conftest import logits_of, tiny_model

from toolkit.moe import BlockActivations, find_blocks, observing


def seen_by(model, length: int = 24) -> tuple[list[BlockActivations], torch.Tensor]:
    seen: list[BlockActivations] = []
    with observing(model, seen.append):
        logits = logits_of(model, length)
    return seen, logits


def test_a_watched_model_answers_as_an_unwatched_one(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    seen, watched = seen_by(model)
    torch.testing.assert_close(watched, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_of(model), before)  # and afterwards nothing is left of the watching
    assert [s.block for s in seen] == [block.name for block in find_blocks(model)]


def test_gated_outputs_sum_to_what_the_experts_module_returns(family: str) -> None:
    model = tiny_model(family, torch.float64)
    returned: list[torch.Tensor] = []
    for block in find_blocks(model):
        block.experts.register_forward_hook(lambda module, args, output: returned.append(output))
    logits_of(model)
    seen, _ = seen_by(model)
    for s, stock in zip(seen, returned, strict=False):  # the second half of `returned` is the watched pass itself
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
