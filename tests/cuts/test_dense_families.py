"""The dense form of every family: dense ≡ experts with fixed gate weights ≡ written ≡ reloaded by stock transformers; or refused
for the reason that docs/families.md gives."""

from pathlib import Path

import pytest
import torch
from conftest import raises
from drawn_plan import drawn_plan
from families import DENSE_EXCEPTIONS, DENSE_NOTES, EXCEPTIONS, ITSELF, families, text_logits, tiny_family
from torch import nn
from transformers import PreTrainedModel

from toolkit.cuts import DenseBlock, Plan, apply_plan, dense_twin, masked, merged_model, prune_checkpoint, with_fixed_gates
from toolkit.cuts.checkpoint import copied_from_file
from toolkit.moe import blocks_in, find_blocks, load_config
from toolkit.moe.load import auto_class

DENSE = [family for family in families() if family not in DENSE_EXCEPTIONS]


def drawn_coefficients(model: PreTrainedModel, keep: int) -> dict[str, DenseBlock]:
    """Any numbers, also below 0 and above 1."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for block in find_blocks(model):
        gated = any(isinstance(child, nn.Linear) and name.startswith("shared") for name, child in block.module.named_children())
        drawn = torch.rand(keep, generator=generator) * 1.5 - 0.25
        found[block.name] = DenseBlock(coefficients=drawn.tolist(), shared=0.7 if gated else 1.0)
    return found


@pytest.mark.parametrize("family", DENSE)
def test_a_family_becomes_its_twin(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    model.save_pretrained(tmp_path / "original")
    plan = drawn_plan(model, 4, None)
    plan = plan.model_copy(update={"form": "dense", "dense": drawn_coefficients(model, 4)})
    plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.dense is not None

    whole = text_logits(model)
    with with_fixed_gates(model, plan.dense, {name: block.kept for name, block in plan.blocks.items()}), masked(model, plan):
        expected = text_logits(model)
    assert torch.equal(text_logits(model), whole)
    size = expected.abs().max()
    assert (expected - whole).abs().max() > 1e-3 * size  # or the law would say nothing

    prune_checkpoint(tmp_path / "original", plan, tmp_path / "dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "original", "plan.json"]
    stock, info = auto_class(type(load_config(str(tmp_path / "dense")))).from_pretrained(
        tmp_path / "dense", output_loading_info=True
    )
    assert not any(info.values())  # every tensor of the twin is filled, and none is left over
    assert not blocks_in(stock)
    stock = copied_from_file(stock)
    assert (text_logits(stock) - expected).abs().max() <= 1e-5 * size
    in_memory = copied_from_file(merged_model(apply_plan(model, plan), plan.dense))
    assert torch.equal(text_logits(stock), text_logits(in_memory))

    twin = dense_twin(model)
    assert DENSE_NOTES.get(family, ITSELF) == (ITSELF if twin.is_itself else f"as `{twin.model.config.model_type}`")


@pytest.mark.parametrize("family", [family for family in DENSE_EXCEPTIONS if family not in EXCEPTIONS])
def test_a_family_without_a_twin_is_refused_with_the_reason(family: str) -> None:
    model = tiny_family(family)
    with raises("dense.no-twin", model.config.model_type, "docs/families.md"):
        dense_twin(model)
