"""Every family of the installed transformers: calibrated, pruned, reloaded, trained and generated with.

Which families these are is found in the package (tests/families.py), not listed: a new one arrives with the next version.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, raises
from families import EXCEPTIONS, EXPERTS, WHOLE, config_class, families, minus_infinity, table, text_logits, tiny_family
from transformers import PreTrainedModel
from whole_way import check_the_whole_way

from toolkit.calibration import calibrate
from toolkit.cuts.apply import masked
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.moe import find_blocks, load_model, meta_model
from toolkit.selection import select

KEPT = [0, 3, 5, 6]  # two in each half: some of these families choose within groups
ids = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(2))
batches = [{"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2])}]
batches.append({"input_ids": ids[2:], "attention_mask": (torch.arange(24) >= torch.tensor([[7], [0]])).long()})


def plan_by_hand(model: PreTrainedModel) -> Plan:
    blocks = find_blocks(model)
    choice = {block.name: BlockPlan(experts=EXPERTS, kept=KEPT) for block in blocks}
    return Plan.of_experts(
        model="tiny", criterion="by hand", keep=4, experts_per_token=blocks[0].experts_per_token, blocks=choice
    )


@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_a_family_goes_the_whole_way(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_family(family)
    assert all(block.expert_count == EXPERTS for block in find_blocks(model))
    model.save_pretrained(tmp_path / "original")

    statistics = calibrate(load_model(str(tmp_path / "original")), batches)
    layer_by_layer = calibrate(tmp_path / "original", batches).vectors  # exactly the same, and never the whole model
    assert layer_by_layer.keys() == statistics.vectors.keys()
    assert all(torch.equal(layer_by_layer[name], vector) for name, vector in statistics.vectors.items())
    assert "loaded whole" not in capsys.readouterr().out
    check_the_whole_way(family, model, select(statistics, "weighted_ean", 4), tmp_path)
    assert ("the whole model is loaded" in capsys.readouterr().out) == (family in WHOLE)  # else file by file


# Independent of how `masked` works: the router's own linear layer gives −inf for pruned experts, and so do its biases.
@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_masking_a_family_is_minus_infinity_in_its_router(family: str) -> None:
    model = tiny_family(family)
    with minus_infinity(model, KEPT):
        expected = text_logits(model)
    with masked(model, plan_by_hand(model)):
        found = text_logits(model)
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("family", EXCEPTIONS)
def test_an_exception_is_refused_by_its_name(family: str) -> None:
    assert config_class(family) is None
    from transformers import CONFIG_MAPPING

    with raises("model.unsupported-family", f"{family} is no family"):
        meta_model(CONFIG_MAPPING[family]())


def test_a_router_that_looks_experts_up_is_refused() -> None:
    with raises("model.routes-by-token", "layers.0.mlp"):
        find_blocks(tiny_family("deepseek_v4", mlp_layer_types=["hash_moe", "moe", "moe", "moe"]))


def test_the_table_is_in_step() -> None:
    assert (ROOT / "docs" / "families.md").read_text() == table()


def test_a_pruned_checkpoint_can_be_pruned_again(tmp_path: Path) -> None:
    model = tiny_family("mixtral")
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", plan_by_hand(model), tmp_path / "pruned")
    blocks = {block.name: BlockPlan(experts=4, kept=[1, 2]) for block in find_blocks(load_model(str(tmp_path / "pruned")))}
    again = Plan.of_experts(model="tiny", criterion="by hand", keep=2, experts_per_token=1, blocks=blocks)
    prune_checkpoint(tmp_path / "pruned", again, tmp_path / "twice")
    assert [b.experts_per_token for b in find_blocks(load_model(str(tmp_path / "twice")))] == [1] * len(blocks)
