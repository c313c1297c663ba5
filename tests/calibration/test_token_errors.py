import pytest
import torch
from conftest import logits_of, tiny_model

from toolkit.calibration import token_errors as module
from toolkit.calibration.token_errors import token_errors
from toolkit.moe import BlockActivations, every_expert_outputs, observing


@pytest.mark.parametrize("inherited", [False, True])
def test_an_error_is_the_squared_distance_of_the_outputs(family: str, inherited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 8 * 8 * 32 * 7})  # seven tokens at a time
    rows = torch.arange(3, 40)
    generator = torch.Generator().manual_seed(0)
    sizes: list[int] = []

    def check(seen: BlockActivations) -> None:
        target = torch.randn(seen.routed_TH.shape, generator=generator) if inherited else None
        for chunk, errors in token_errors(seen, rows, 8, target):
            index = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in chunk])
            gate = torch.rand(len(chunk), 2, generator=generator)
            outputs = (
                every_expert_outputs(seen.experts, seen.hidden_TH[chunk], 8)
                .double()
                .gather(1, index.unsqueeze(-1).expand(-1, -1, 32))
            )
            y = (seen.routed_TH if target is None else target)[chunk].double()
            expected = ((outputs * gate.unsqueeze(-1)).sum(1) - y).square().sum(1)
            everyone = torch.arange(len(chunk))
            torch.testing.assert_close(errors(index, gate, everyone), expected, rtol=1e-5, atol=1e-6)
            some = everyone[::2]
            torch.testing.assert_close(errors(index[some], gate[some], some), expected[some], rtol=1e-5, atol=1e-6)
            at_once = errors.of_choices(torch.stack([index.T, index.T.flip(0)]), torch.stack([gate.T, gate.T.flip(0)]))
            torch.testing.assert_close(at_once, expected.expand(2, -1), rtol=1e-5, atol=1e-6)
            sizes.append(len(chunk))

    with torch.no_grad(), observing(model, check):
        logits_of(model)
    assert max(sizes) == 7


# The figures of the module's docstring: G in float32 serves outputs that differ, not copies; float64 serves both.
@pytest.mark.parametrize(("copies", "loss_in_float32"), [(1.0, 1e-6), (1e-3, 0.1)])
def test_inner_products_of_float32_outputs_are_float64_because_copies_need_it(copies: float, loss_in_float32: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base_TH = torch.randn(64, 1, 256, generator=generator)
    F_TEH = base_TH * (copies < 1) + copies * torch.randn(64, 8, 256, generator=generator)
    index_TK, gate_TK = torch.tensor([[0, 1]]).expand(64, 2), torch.tensor([[0.6, 0.4]]).expand(64, 2)
    other = torch.tensor([[[2], [3]]]).expand(1, 2, 64), torch.tensor([[[0.6], [0.4]]]).expand(1, 2, 64)
    wide = F_TEH.double()
    weights = torch.tensor([[-0.6, -0.4, 0.6, 0.4]]).double()
    true = (weights @ wide[:, :4]).norm()
    products = module.inner_products(F_TEH)
    assert products.dtype == torch.float64
    losses = [module.TokenErrors(G, index_TK, gate_TK).of_choices(*other).sum().sqrt() for G in (products, F_TEH @ F_TEH.mT)]
    gaps = [abs(float(loss / true - 1)) for loss in losses]
    assert gaps[0] < 1e-7 and gaps[1] < loss_in_float32
    assert copies == 1 or gaps[1] > 1e-4
    assert module.inner_products(F_TEH.bfloat16()).dtype == torch.float32
