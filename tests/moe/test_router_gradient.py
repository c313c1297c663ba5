"""Laws of the gradient over all experts: nothing but the routers' gradient changes, and that is the one of the whole mixture."""

from collections.abc import Callable

import pytest
import torch
from conftest import raises, tiny_model
from families import EXCEPTIONS, families, tiny_family
from torch.nn.functional import softmax
from transformers import PreTrainedModel

from toolkit.moe import find_blocks, meta_model, router_gradient
from toolkit.moe.router_gradient import check_router_gradient, train_routers_on_all_experts

REFUSED = {"inkling": "among more than its experts", "phimoe": "always chooses 2 experts", "zaya": "among more than its experts"}
Gradients = dict[str, torch.Tensor]


def trained(model: PreTrainedModel, every_expert: bool = True) -> tuple[torch.Tensor, Gradients]:
    """Logits and gradients of one batch; the last tokens of a row are padding."""
    if every_expert:
        train_routers_on_all_experts(model, find_blocks(model))
    ids = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 18:], labels[1, 18:] = 0, -100
    out = model.train()(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def of_routers(model: PreTrainedModel, name: str) -> bool:
    return any(name.startswith(f"{block.router_path}.") for block in find_blocks(model))


def test_the_forward_pass_and_every_other_gradient_stay_bit_for_bit(family: str) -> None:
    model = tiny_model(family)
    logits, found = trained(model)
    before, expected = trained(tiny_model(family), every_expert=False)
    assert torch.equal(logits, before)
    assert found.keys() == expected.keys()
    changed = {name for name in found if not torch.equal(found[name], expected[name])}
    assert changed and all(of_routers(model, name) for name in changed)
    assert all(name in changed for name in found if of_routers(model, name) and name.endswith("weight"))


def plain(logits_TE: torch.Tensor, index_TK: torch.Tensor) -> torch.Tensor:
    return softmax(logits_TE, -1)


def normalized(logits_TE: torch.Tensor, index_TK: torch.Tensor) -> torch.Tensor:
    """The chosen experts' sum, as the number that it is, is where the forward pass has it."""
    p_TE = softmax(logits_TE, -1)
    return p_TE / p_TE.detach().gather(1, index_TK).sum(1, keepdim=True)


def sigmoid(logits_TE: torch.Tensor, index_TK: torch.Tensor) -> torch.Tensor:
    s_TE = logits_TE.sigmoid()
    w_TE = s_TE / s_TE.sum(1, keepdim=True)
    return 2.5 * w_TE / w_TE.detach().gather(1, index_TK).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("family", "gates"),
    [("olmoe", plain), ("qwen2_moe", plain), ("mixtral", normalized), ("gpt_oss", normalized), ("deepseek_v3", sigmoid)],
)
def test_a_routers_gradient_is_that_of_the_mixture_of_all_experts(
    family: str, gates: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    model = tiny_family(family)
    block, seen = find_blocks(model)[-1], {}
    experts = block.experts

    def record(module: object, args: tuple[torch.Tensor, ...], kwargs: dict, output: torch.Tensor) -> None:
        seen["inputs"] = (*args, *kwargs.values())
        output.register_hook(lambda gradient: seen.update(gradient=gradient))

    experts.register_forward_hook(record, with_kwargs=True)
    _, found = trained(model)
    hidden_TH, index_TK, gate_TK = (tensor.detach() for tensor in seen["inputs"])
    router = {name: p.detach().clone().requires_grad_() for name, p in block.router.named_parameters()}
    weights_TE = gates(torch.nn.functional.linear(hidden_TH, router["weight"], router.get("bias")), index_TK)
    torch.testing.assert_close(weights_TE.detach().gather(1, index_TK), gate_TK, rtol=1e-4, atol=1e-5)
    own = type(experts).forward.__wrapped__
    outputs = [
        own(experts, hidden_TH, torch.full((len(hidden_TH), 1), e), torch.ones(len(hidden_TH), 1)).detach()
        for e in range(block.expert_count)
    ]
    mixture_TH = (weights_TE.unsqueeze(-1) * torch.stack(outputs, 1)).sum(1)
    mixture_TH.backward(seen["gradient"])
    for name, parameter in router.items():
        torch.testing.assert_close(found[f"{block.router_path}.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss"])
def test_where_every_expert_is_active_it_is_the_usual_gradient(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_gradient, "_check_choice", lambda blocks: None)  # which refuses it: in vain
    _, found = trained(tiny_model(family, num_experts_per_tok=8))
    _, expected = trained(tiny_model(family, num_experts_per_tok=8), every_expert=False)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_only_experts_that_a_token_did_not_choose_are_computed_and_no_padding(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, computed, products = tiny_model(family), [], router_gradient._products_of_all

    def counting(run: router_gradient.RunExperts, *tensors: torch.Tensor) -> torch.Tensor:
        computed.append(tensors[-1].numel())
        return products(run, *tensors)

    monkeypatch.setattr(router_gradient, "_products_of_all", counting)
    trained(model)
    learning = 23 + 17  # tokens with another behind them
    assert sum(computed) == sum(learning * (block.expert_count - block.experts_per_token) for block in find_blocks(model))


def test_it_is_the_same_with_gradient_checkpointing() -> None:
    model = tiny_model("qwen2_moe")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, found = trained(model)
    _, expected = trained(tiny_model("qwen2_moe"))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_an_evaluation_computes_what_it_did() -> None:
    model = tiny_model("mixtral")
    ids = torch.arange(3, 27).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        train_routers_on_all_experts(model, find_blocks(model))
        assert torch.equal(model.train()(ids).logits, before)
        assert torch.equal(model.eval()(ids).logits, before)


@pytest.mark.parametrize("family", sorted(set(families()) - set(EXCEPTIONS)))
def test_every_family_learns_so_or_is_refused_with_the_reason(family: str) -> None:
    model = tiny_family(family)
    if family in REFUSED:
        with raises("model.no-router-gradient", find_blocks(model)[0].name, REFUSED[family]):
            check_router_gradient(model)
        return
    check_router_gradient(meta_model(model.config))
    before, expected = trained(model, every_expert=False)
    model.zero_grad()
    logits, found = trained(model)
    assert torch.equal(logits, before)
    apart = {name for name in expected if not torch.equal(expected[name], found[name])}
    assert apart and all(of_routers(model, name) for name in apart)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_a_block_that_changes_its_routers_weights_is_refused() -> None:
    model = tiny_model("mixtral")
    block = find_blocks(model)[0]
    block.experts.register_forward_pre_hook(lambda module, args: (args[0], args[1], args[2] * 2))
    with raises("model.no-router-gradient", "model.layers.0.mlp", "MixtralTopKRouter", "changes them"):
        trained(model)


def test_where_nothing_is_left_out_it_is_refused() -> None:
    model = tiny_model("mixtral", num_local_experts=2)
    with raises("model.all-active", "finetuning.router_gradient", "2 experts"):
        check_router_gradient(model)
