"""Laws of the way that GPUs take, on a CPU: it asks the device for nothing, and computes what the gathered pairs do."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from conftest import raises, tiny_model
from families import EXCEPTIONS, families, text_logits, tiny_family
from test_expert_skipping import text, thresholds_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.moe import grouped_mm_experts_forward

from toolkit.moe import apply_skipping, counting_skips, find_blocks, skipping
from toolkit.moe.skipped_pairs import (
    gathered_forward,
    grouped_forward,
    is_grouped,
    renormalized_gates,
    skipped_pairs,
    skipping_forward,
    threshold_of,
)

WAITING = ("nonzero", "_local_scalar_dense", "item", "unique", "is_nonzero", "masked_select", "index.Tensor_bool")


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("toolkit.moe.skipped_pairs.is_grouped", lambda device, before: True)
    yield


class Operations(TorchDispatchMode):
    """Counts the operations of the device, and refuses those whose result the program must have to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{func} waits for the device"
        by_mask = name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask, f"{func} with a mask waits for the device"
        self.count += not (func.is_view or name in ("empty", "empty_like", "promote_types"))
        return func(*args, **(kwargs or {}))


def drawn(k: int, tokens: int = 40, experts: int = 8, hidden: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, chosen experts, gate weights in any order."""
    generator = torch.Generator().manual_seed(k)
    index = torch.rand(tokens, experts, generator=generator).topk(k).indices
    gate = torch.rand(tokens, k, generator=generator)
    return torch.randn(tokens, hidden, generator=generator), index, gate / gate.sum(1, keepdim=True)


def only_experts(k: int, share: float = 0.5) -> Any:
    """The experts module of a small model that skips."""
    model = tiny_model("mixtral", num_experts_per_tok=k)
    return find_blocks(apply_skipping(model, thresholds_of(model, share)))[0].experts


def in_a_plain_loop(gate: torch.Tensor, beta: float) -> list[list[bool]]:
    rows = []
    for g in gate.double().tolist():
        best = sorted(range(len(g)), key=lambda i: -abs(g[i]))
        beyond = [sum(sorted(abs(g[m]) for m in best[i:])) for i in range(len(g))]
        if len(g) == 2:
            skipped = {best[1]} if abs(g[best[1]]) < beta * abs(g[best[0]]) else set()
        else:
            skipped = {best[i] for i in range(1, len(g)) if beyond[i] <= beta * beyond[0]}
        rows.append([i in skipped for i in range(len(g))])
    return rows


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rule_needs_no_order_of_the_gate_weights(k: int, dtype: torch.dtype) -> None:
    gate = drawn(k, tokens=500)[2].mul(torch.tensor([1.0, -1.0] * k)[:k]).to(dtype)  # bfloat16: many are equal
    gate[0], gate[1] = 0, 0.25
    for beta in (0.0, 0.2, 0.5, 1.0):
        found = skipped_pairs(gate, torch.tensor([beta], dtype=torch.float64))
        assert found.tolist() == in_a_plain_loop(gate, beta)


@pytest.mark.parametrize("k", [2, 4])
def test_a_gate_weight_that_is_no_number_is_not_hidden(k: int) -> None:
    hidden, index, gate = drawn(k)
    gate[3, 1] = float("nan")
    experts = only_experts(k)
    assert not skipped_pairs(gate, threshold_of(experts))[3].any()
    found = grouped_forward(experts, hidden, index, gate, skipped_pairs(gate, threshold_of(experts)))
    assert found[3].isnan().all() and not found[:3].isnan().any() and not found[4:].isnan().any()


@pytest.mark.parametrize("k", [2, 3, 8])
def test_both_ways_compute_the_same_and_one_of_them_asks_the_device_for_nothing(k: int) -> None:
    experts, (hidden, index, gate) = only_experts(k), drawn(k)
    skip = skipped_pairs(gate, threshold_of(experts))
    assert skip.any()
    gathered = gathered_forward(grouped_mm_experts_forward, experts, hidden, index, gate, ~skip)
    with Operations():
        found = grouped_forward(experts, hidden, index, gate, skipped_pairs(gate, threshold_of(experts)))
    torch.testing.assert_close(found, gathered, atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError, match="nonzero"), Operations():
        gathered_forward(grouped_mm_experts_forward, experts, hidden, index, gate, ~skip)


@pytest.mark.parametrize(("k", "more"), [(2, 6), (8, 15)])
def test_skipping_costs_a_gpu_few_operations_more_than_not_to_skip(k: int, more: int) -> None:
    experts, (hidden, index, gate) = only_experts(k), drawn(k)
    with Operations() as without:
        grouped_mm_experts_forward(experts, hidden, index, gate)
    with Operations() as ours:
        grouped_forward(experts, hidden, index, gate, skipped_pairs(gate, threshold_of(experts)))
    assert ours.count <= without.count + more


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_every_family_gives_the_same_logits_either_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_family(family)
    if find_blocks(model)[0].experts_per_token == 1:
        return
    with skipping(model, thresholds_of(model)), counting_skips(model) as counter:
        found, skipped = text_logits(model), counter.take().skipped
        monkeypatch.setattr("toolkit.moe.skipped_pairs.is_grouped", is_grouped)
        expected = text_logits(model)
    assert sum(skipped) > 0
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_weights_of_skipped_experts_do_not_matter() -> None:
    experts, (hidden, index, gate) = only_experts(2), drawn(2, tokens=1)
    gate[:] = torch.tensor([[0.95, 0.05]])
    skip = skipped_pairs(gate, threshold_of(experts))
    assert skip.tolist() == [[False, True]]
    expected = grouped_forward(experts, hidden, index, gate, skip)
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            getattr(experts, name)[index[0, 1]] = float("nan")
    assert torch.equal(grouped_forward(experts, hidden, index, gate, skip), expected)


@pytest.mark.parametrize("k", [2, 4])
def test_gradients_are_those_of_the_pairs_that_stay(k: int) -> None:
    experts, (hidden, index, gate) = only_experts(k), drawn(k)
    skip = skipped_pairs(gate, threshold_of(experts))

    def gradients(gathered: bool) -> list[torch.Tensor | None]:
        experts.zero_grad()
        h, g = hidden.clone().requires_grad_(), gate.clone().requires_grad_()
        if gathered:
            outputs = gathered_forward(grouped_mm_experts_forward, experts, h, index, g, ~skip)
        else:
            outputs = grouped_forward(experts, h, index, g, skip)
        outputs.square().sum().backward()
        return [h.grad, g.grad, *(parameter.grad for parameter in experts.parameters())]

    found = gradients(gathered=False), gradients(gathered=True)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("k", [2, 4])
def test_torch_compile_takes_it_as_one_graph(k: int) -> None:
    experts, (hidden, index, gate) = only_experts(k), drawn(k)
    compiled = torch.compile(skipping_forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for amount in (40, 7):
            inputs = hidden[:amount], index[:amount], gate[:amount]
            torch.testing.assert_close(compiled(experts, *inputs), skipping_forward(experts, *inputs))


def test_gates_of_two_take_over_what_both_had() -> None:
    experts, (hidden, index, gate) = only_experts(2), drawn(2)
    gate[:20] *= torch.tensor([1.0, -1.0])  # as Gemma 4's may be
    skip = skipped_pairs(gate, threshold_of(experts))
    one = torch.ones_like(hidden)
    with torch.no_grad():
        alone = torch.stack(
            [grouped_mm_experts_forward(experts, one, index[:, i : i + 1], gate[:, :1] * 0 + 1) for i in (0, 1)], 1
        )
        expected = (alone * renormalized_gates(gate, ~skip).unsqueeze(2)).sum(1)
        torch.testing.assert_close(grouped_forward(experts, one, index, gate, skip), expected)


def test_the_threshold_goes_where_the_model_goes_and_stays_as_it_is() -> None:
    model = tiny_model("mixtral")
    thresholds = thresholds_of(model)
    with skipping(model, thresholds):
        names = model.state_dict().keys()
        model.to(torch.bfloat16)
        for block in find_blocks(model):
            assert threshold_of(block.experts).tolist() == [thresholds.blocks[block.name]]
            assert threshold_of(cast(Any, block.experts)).device == model.device
    assert not any("skipping" in name for name in names)
    assert not [name for name, _ in model.named_buffers() if "skipping" in name]  # and afterwards nothing is left of it


def test_thresholds_in_thresholds_are_followed_and_taken_back() -> None:
    model = tiny_model("mixtral")
    with skipping(model, thresholds_of(model, 0.25)):
        outer = text(model)
        with skipping(model, thresholds_of(model, 0.75)), counting_skips(model) as counter:
            assert not torch.equal(text(model), outer)
        assert counter.take().rate > 0.5
        assert torch.equal(text(model), outer)


def test_experts_spread_over_ranks_are_refused() -> None:
    model = tiny_model("mixtral")
    thresholds = thresholds_of(model)
    cast(Any, find_blocks(model)[0].experts)._is_expert_parallel = True
    with raises("skipping.expert-parallel", "ZeRO-3"), skipping(model, thresholds):
        pass


def test_each_device_goes_its_way() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert is_grouped(gpu, "grouped_mm") and is_grouped(gpu, "batched_mm")
    assert not is_grouped(gpu, "eager") and not is_grouped(cpu, "grouped_mm")
