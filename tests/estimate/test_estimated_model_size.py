"""Counted on the meta device, against what torch's own allocator hands out when the same model really runs."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from families import EXCEPTIONS, OVERRIDES, config_class, families, shrunk
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from toolkit.estimate.finetuning import distilled_bytes
from toolkit.estimate.model_size import cache_bytes, working_memory
from toolkit.moe import meta_model
from toolkit.recovery.distillation import distillation_losses_in_parts
from toolkit.recovery.top_logits import TOKENS_AT_ONCE, top_and_tail

BATCH, LENGTH = 2, 128
SHAPE = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "vocab_size": 1000,
}  # fmt: skip
MODELS = {
    "mixtral": {"intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"moe_intermediate_size": 128, "num_experts": 32, "num_experts_per_tok": 4},
}
LOOK_AT_CONTENTS = {"glm5_next", "qwen4_exp"}  # their sparse attention picks positions by their scores


def allocated(work: Callable[[], object]) -> int:
    """Bytes that the CPU's allocator had handed out at the fullest moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


def config_of(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **SHAPE, **MODELS[family])


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("train", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_it_is_what_the_allocator_hands_out(family: str, train: bool, checkpointing: bool) -> None:
    estimated = working_memory(meta_model(config_of(family)), BATCH, LENGTH, train, checkpointing)
    model = AutoModelForCausalLM.from_config(config_of(family)).train(train)
    ids, mask = torch.randint(0, 1000, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -9:] = 0  # padding, as in every real batch

    def run() -> None:
        with torch.set_grad_enabled(train):
            out = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            if train:
                out.sum().backward()

    if checkpointing:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    assert estimated == pytest.approx(allocated(run), rel=0.15)


def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves() -> None:
    model = AutoModelForCausalLM.from_config(config_of("qwen3_moe")).train()
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    ids, mask = torch.randint(0, 1000, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -9:] = 0
    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        model.base_model(ids, attention_mask=mask, use_cache=False)
    kept = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    # The peak holds all of it, and beside it what the backward pass makes of one layer: no more than its gradients
    peak = working_memory(meta_model(config_of("qwen3_moe")), BATCH, LENGTH, train=True)
    layer = 4 * sum(parameter.numel() for parameter in model.base_model.layers[0].parameters())
    assert peak is not None and kept <= peak <= kept + layer


def test_tokens_cost_in_proportion_and_checkpointing_saves() -> None:
    model = meta_model(config_of("mixtral"))
    one, four = (working_memory(model, batch, LENGTH, train=True) for batch in (1, 4))
    cheap = working_memory(model, 4, LENGTH, train=True, checkpointing=True)
    assert one and four and cheap
    assert 2 * one < four < 4 * one  # a layer's gradients are there whatever the batch
    assert cheap < 0.7 * four
    assert not model.is_gradient_checkpointing


# Most of what it holds grows with the tokens, and the float32 copies of a part do not.
@pytest.mark.parametrize("parts", [1, 3])
def test_the_distilled_loss_holds_its_logits_and_copies_of_a_part(parts: int) -> None:
    tokens, vocabulary = parts * TOKENS_AT_ONCE, 500
    teacher = top_and_tail(torch.randn(tokens, vocabulary), 2.0)
    hidden, head = torch.randn(tokens, 4), torch.randn(4, vocabulary, requires_grad=True)

    def run() -> None:
        logits = hidden @ head  # of the batch, and those that count
        cross, divergence = distillation_losses_in_parts(
            logits[torch.ones(tokens).bool()], torch.arange(tokens) % vocabulary, teacher, 2.0
        )
        (cross + divergence).backward()

    assert distilled_bytes(tokens, vocabulary, 4, TOKENS_AT_ONCE) == pytest.approx(allocated(run), rel=0.15)


def test_the_cache_is_keys_and_values() -> None:
    assert cache_bytes(meta_model(config_of("mixtral")), 64) == 3 * 64 * 2 * 4 * 32 * 4


@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_every_family_is_counted_or_said_not_to_be(family: str) -> None:
    kind = config_class(family)
    assert kind is not None
    model = meta_model(kind(**shrunk(kind(), OVERRIDES.get(family, {}))))
    assert (working_memory(model, 2, 24) is None) == (family in LOOK_AT_CONTENTS)
