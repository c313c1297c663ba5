"""What every kind of cut has to show: a tiny model cut by a plan is masked, written, reloaded by stock transformers, applied,
generated with and trained."""

from pathlib import Path

import torch
from families import config_class, text_logits
from transformers import PreTrainedModel

from toolkit.cuts import Plan, apply_plan, masked, prune_checkpoint
from toolkit.cuts.checkpoint import copied_from_file
from toolkit.moe import check_loaded, find_blocks
from toolkit.moe.load import auto_class

ids = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(2))


def check_the_whole_way(family: str, model: PreTrainedModel, plan: Plan, folder: Path) -> None:
    """masked ≡ applied ≡ written and reloaded (1e-5 of the largest logit; reloaded exactly), cached generation ≡ uncached, and
    one training step. The plan goes through its file."""
    model.save_pretrained(folder / "original")
    plan.save(folder / "plan.json")
    plan, whole = Plan.load(folder / "plan.json"), text_logits(model)
    with masked(model, plan):
        expected = text_logits(model)
    assert torch.equal(text_logits(model), whole)
    size = min(1.0, whole.abs().max().item())
    assert (expected - whole).abs().max() > 1e-3 * size  # or the mask would prove nothing

    prune_checkpoint(folder / "original", plan, folder / "pruned")
    stock = auto_class(config_class(family)).from_pretrained(folder / "pruned")
    check_loaded(stock, str(folder / "pruned"))  # what loading renames and fuses keeps its sum of squares
    stock = copied_from_file(stock)
    sliced = copied_from_file(apply_plan(model, plan))
    ours, theirs = stock.state_dict(), sliced.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert torch.equal(text_logits(stock), text_logits(sliced))  # cut and reloaded: exactly nothing else changes
    assert (text_logits(stock) - expected).abs().max() <= 1e-5 * size

    tokens = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones(2, 5).long()}
    written = [cut.generate(ids[:, :5], use_cache=cached, **tokens) for cut in (stock, sliced) for cached in (True, False)]
    assert written[0].shape == (2, 9)
    assert all(torch.equal(written[0], other) for other in written)

    stock.train()
    stock(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = [block for block in find_blocks(stock) if block.experts.down_proj.grad is not None]
    assert trained and all(block.experts.down_proj.grad.isfinite().all() for block in trained)
