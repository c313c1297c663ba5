"""Every expert's output, in dense products, is what the family's own code answers, for every family of the installed
transformers."""

import pytest
import torch
from families import EXCEPTIONS, families, text_logits, tiny_family

from toolkit.moe import BlockActivations, every_expert_outputs, observing


@pytest.mark.parametrize("name", [name for name in families() if name not in EXCEPTIONS])
def test_dense_products_are_what_the_familys_own_experts_answer(name: str) -> None:
    checked: list[str] = []

    def check(seen: BlockActivations) -> None:
        hidden_TH = seen.hidden_TH[:5]
        count = seen.experts.down_proj.shape[0]
        found = every_expert_outputs(seen.experts, hidden_TH, count)
        alone = torch.stack([seen.run_expert(hidden_TH, expert) for expert in range(count)], 1)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        checked.append(seen.block)

    model = tiny_family(name)
    with torch.no_grad(), observing(model, check):
        text_logits(model)
    assert checked
