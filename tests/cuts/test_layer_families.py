"""Every family of the installed transformers with fewer layers, alone and together with fewer experts: masked, applied, written
file by file, reloaded by stock transformers, trained and generated with; or refused for the reason that docs/families.md gives.
"""

from pathlib import Path

import pytest
import torch
from conftest import raises
from families import (
    EXCEPTIONS,
    EXPERTS,
    KEPT_LAYERS,
    LAYER_CHANGES,
    LAYER_EXCEPTIONS,
    LAYERS_WHOLE,
    config_class,
    families,
    text_logits,
    tiny_family,
)
from transformers import PreTrainedModel

from toolkit.cuts import Cut, ExpertsCut, LayersCut, Plan, apply_plan, check_plan, masked, prune_checkpoint
from toolkit.cuts.checkpoint import copied_from_file
from toolkit.cuts.experts import BlockPlan
from toolkit.moe import find_blocks
from toolkit.moe.load import auto_class

EXPERTS_KEPT = [0, 3, 5, 6]  # two in each half: some of these families choose within groups
ids = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(2))


def plan_of(model: PreTrainedModel, family: str, with_experts: bool) -> Plan:
    layers = LayersCut.of(model, KEPT_LAYERS.get(family, [0, 2, 3]), "by hand")
    cuts: list[Cut] = [layers]
    blocks = find_blocks(model)
    if with_experts:
        choice = {
            block.name: BlockPlan(experts=EXPERTS, kept=EXPERTS_KEPT) for block in blocks if layers.rename(block.name, block.name)
        }
        cuts.append(ExpertsCut.of(choice, criterion="by hand", keep=len(EXPERTS_KEPT)))
    return Plan(model="tiny", experts_per_token=blocks[0].experts_per_token, cuts=cuts)


@pytest.mark.parametrize("with_experts", [False, True], ids=["layers", "layers and experts"])
@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS.keys() | LAYER_EXCEPTIONS.keys()])
def test_a_family_goes_the_whole_way(family: str, with_experts: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_family(family, **LAYER_CHANGES.get(family, {}))
    model.save_pretrained(tmp_path / "original")
    plan, whole = plan_of(model, family, with_experts), text_logits(model)
    with masked(model, plan):
        expected = text_logits(model)
    assert torch.equal(text_logits(model), whole)
    size = min(1.0, whole.abs().max().item())
    assert (expected - whole).abs().max() > 1e-3 * size  # or the mask would prove nothing

    prune_checkpoint(tmp_path / "original", plan, tmp_path / "pruned")
    assert ("the whole model is loaded" in capsys.readouterr().out) == (family in LAYERS_WHOLE)  # else file by file
    stock = auto_class(config_class(family)).from_pretrained(tmp_path / "pruned")
    sliced = copied_from_file(apply_plan(model, plan))
    ours, theirs = copied_from_file(stock).state_dict(), sliced.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert torch.equal(text_logits(stock), text_logits(sliced))  # cut and reloaded: exactly nothing else changes
    assert (text_logits(stock) - expected).abs().max() <= 1e-5 * size

    tokens = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones(2, 5).long()}
    written = [cut.generate(ids[:, :5], use_cache=use_cache, **tokens) for cut in (stock, sliced) for use_cache in (True, False)]
    assert written[0].shape == (2, 9)
    assert all(torch.equal(written[0], other) for other in written)

    stock.train()
    stock(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = [block for block in find_blocks(stock) if block.experts.down_proj.grad is not None]
    assert trained and all(block.experts.down_proj.grad.isfinite().all() for block in trained)


REFUSALS = {"beam": "attn_residual_add_idx", "minimax": "num_hidden_layers", "gemma4": "embed_tokens_per_layer"}


@pytest.mark.parametrize("family", LAYER_EXCEPTIONS.keys() | LAYER_CHANGES.keys())
def test_an_exception_is_refused(family: str) -> None:
    model = tiny_family(family)
    with raises("layers.cannot-drop", family, REFUSALS[family]):
        check_plan(model, plan_of(model, family, with_experts=False))
