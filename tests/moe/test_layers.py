import threading

import pytest
import torch
from conftest import raises, tiny_model
from families import tiny_family

from toolkit.moe import ForwardPass, base_model_returns, blocks_by_layer, find_blocks, layers_of, one_layer_at_a_time


def batches_of(count: int) -> list[dict[str, torch.Tensor]]:
    """Batches of two sequences; the first begins with padding."""
    ids = torch.randint(3, 64, (2 * count, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, :7] = 0
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(2), mask.split(2), strict=True)]


def open_model(family: str):
    model = tiny_model(family)
    return model, layers_of(model, find_blocks(model))[1]


def nothing_is_left(model) -> bool:
    return not any(isinstance(thread, ForwardPass) for thread in threading.enumerate()) and not any(
        "forward" in vars(module) for module in model.modules()
    )


@torch.no_grad()
def test_all_batches_through_one_layer_after_another_is_the_model(family: str) -> None:
    model, layers = open_model(family)
    batches, ends = batches_of(3), []
    expected = [model.base_model(**batch, use_cache=False).last_hidden_state for batch in batches]
    model.base_model.register_forward_hook(lambda module, args, out: ends.append(out.last_hidden_state))
    with one_layer_at_a_time(model, layers) as at:
        passes = [at.start(batch) for batch in batches]
        for number in range(len(layers)):
            at.check(number)
            for one in passes:
                one.resume(one.output())
    assert all(torch.equal(end, whole) for end, whole in zip(ends, expected, strict=True))
    assert nothing_is_left(model)


# What stands behind the base model is the family's own: scaled, capped, cast, tied.
@torch.no_grad()
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gemma4", "granitemoe", "cohere2_moe", "inkling"])
def test_logits_come_from_what_a_pass_keeps(family: str) -> None:
    model = tiny_family(family)
    layers = layers_of(model, find_blocks(model))[1]
    batches = batches_of(3)
    expected = [model(**batch, use_cache=False).logits for batch in batches]
    with one_layer_at_a_time(model, layers) as at:
        passes = [at.start(batch, keep_output=True) for batch in batches]
        for number in range(len(layers)):
            at.check(number)
            for one in passes:
                one.resume(one.output())
        at.check(None)
        for one, batch, logits in zip(passes, batches, expected, strict=True):
            with base_model_returns(model, one.take_output()):
                assert torch.equal(model(**batch, use_cache=False).logits, logits)
            assert one.take_output() is None
    assert nothing_is_left(model)


# Gemma 4's later layers use the keys and values of earlier ones: each pass has its own, whatever else runs between.
@torch.no_grad()
def test_a_layer_may_run_again_and_other_passes_do_not_notice() -> None:
    model = tiny_family("gemma4", layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2)
    layers = layers_of(model, find_blocks(model))[1]
    batches, ends = batches_of(2), {}
    expected = [model.base_model(**batch, use_cache=False).last_hidden_state for batch in batches]
    hook = model.base_model.register_forward_hook
    hook(lambda module, args, out: ends.update({threading.current_thread(): out.last_hidden_state}))
    with one_layer_at_a_time(model, layers) as at:
        passes, others = [at.start(batch) for batch in batches], [at.start(batch) for batch in batches]
        for _ in layers:
            for one, other in zip(passes, others, strict=True):
                one.output()
                other.resume(other.output())
                one.resume(one.output())
    assert all(torch.equal(ends[one], whole) for one, whole in zip(passes, expected, strict=True))


def test_a_block_knows_its_layer(family: str) -> None:
    model, layers = open_model(family)
    by_layer = blocks_by_layer(find_blocks(model), layers)
    assert len(by_layer) == len(layers)
    assert all(int(block.name.split(".")[2]) == number for number, blocks in enumerate(by_layer) for block in blocks)
    assert sum(map(len, by_layer)) == len(find_blocks(model))


def test_an_error_leaves_neither_threads_nor_doors() -> None:
    model, layers = open_model("mixtral")
    with pytest.raises(RuntimeError, match="stop"), one_layer_at_a_time(model, layers) as at:
        for batch in batches_of(2):
            at.start(batch)
        raise RuntimeError("stop")
    assert nothing_is_left(model)
    with pytest.raises(IndexError), one_layer_at_a_time(model, layers) as at:  # one in the model's own code is raised here
        at.start({"input_ids": torch.tensor([[9999]]), "attention_mask": torch.ones(1, 1).long()})
    assert nothing_is_left(model)


def test_a_system_without_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers = open_model("mixtral")

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with raises("layers.no-threads"), one_layer_at_a_time(model, layers) as at:
        at.start(batches_of(1)[0])


def test_layers_that_a_model_does_not_call_in_order_are_refused() -> None:
    model, layers = open_model("mixtral")
    forward = model.model.forward
    model.model.forward = lambda *args, **kwargs: (
        model.model.layers.insert(0, model.model.layers.pop(1)),
        forward(*args, **kwargs),
    )
    with one_layer_at_a_time(model, layers) as at:
        at.start(batches_of(1)[0])
        with raises("layers.out-of-order", "MixtralForCausalLM", "layer 0"):
            at.check(0)
        with raises("layers.out-of-order", "MixtralForCausalLM", "the end"):
            at.check(None)
