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
            sizes.append(len(chunk))

    with torch.no_grad(), observing(model, check):
        logits_of(model)
    assert max(sizes) == 7
