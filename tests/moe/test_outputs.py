import torch
from conftest import logits_of, tiny_model

from toolkit.moe import BlockActivations, all_expert_outputs, observing


def test_every_expert_says_what_it_says_when_it_is_chosen(family: str) -> None:
    model = tiny_model(family)
    checked: list[int] = []

    def check(seen: BlockActivations) -> None:
        rows = torch.tensor([1, 5, 40])
        found = all_expert_outputs(seen, rows, 8)
        alone = torch.stack([seen.run_expert(seen.hidden_TH[rows], expert) for expert in range(8)], 1)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        routed = (found.gather(1, seen.index_TK[rows].unsqueeze(-1).expand(-1, -1, 32)) * seen.gate_TK[rows].unsqueeze(-1)).sum(1)
        torch.testing.assert_close(routed, seen.routed_TH[rows], atol=1e-5, rtol=1e-5)
        checked.append(1)

    with torch.no_grad(), observing(model, check):
        logits_of(model)
    assert checked
