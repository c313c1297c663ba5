"""The laws of refit, in memory, on families that are built differently."""

import copy

import pytest
import torch
from conftest import logits_of, raises, tiny_model
from families import EXCEPTIONS, REFIT_EXCEPTIONS, REFIT_NOTES, families, text_logits, tiny_family
from refit_cases import cut_copy, drawn_batches

from toolkit.moe import find_blocks
from toolkit.recovery.refit import refit_model, tokens

TARGETS = {
    "mixtral": "residual",
    "gpt_oss": "residual",  # biases, transposed
    "deepseek_v2": "residual",  # shared experts, a dense layer
    "granitemoe": "residual",  # what a block adds is scaled
    "cohere2_moe": "residual",  # attention in parallel
    "flex_olmo": "output",  # a norm behind the block
    "gemma4": "output",  # a dense MLP in parallel, and norms
    "zaya": "output",  # a token may skip
}


@pytest.mark.parametrize("family", TARGETS)
def test_nothing_pruned_nothing_changes_and_half_pruned_comes_nearer(family: str) -> None:
    model, batches = tiny_family(family), drawn_batches()
    expected, same = text_logits(model), copy.deepcopy(model)
    for block in refit_model(model, same, batches).blocks:
        assert block.error_before <= 1e-8
    assert (text_logits(same) - expected).abs().max() <= 1e-5 * expected.abs().max()

    cut = cut_copy(model)
    pruned = (text_logits(cut) - expected).norm()
    result = refit_model(model, cut, batches)
    with_experts = [block for block in result.blocks if "experts" in block.weights[0]]
    assert {block.target for block in with_experts} == {TARGETS[family]}
    assert all(block.error_after <= block.error_before for block in result.blocks)
    assert with_experts[0].error_after < 0.7 * with_experts[0].error_before
    assert (text_logits(cut) - expected).norm() < 0.95 * pruned


@pytest.mark.parametrize("family", sorted(set(families()) - set(EXCEPTIONS) - set(TARGETS)))
def test_every_family_is_refit_or_refused(family: str) -> None:
    model, batches = tiny_family(family), drawn_batches(20)
    cut = cut_copy(model)
    if family in REFIT_EXCEPTIONS:
        with raises("refit.no-linear-path", "normalised", "pruning.refit"):
            refit_model(model, cut, batches)
        return
    blocks = refit_model(model, cut, batches).blocks
    assert all(0 <= block.error_after <= block.error_before for block in blocks)
    with_experts = [block for block in blocks if "experts" in block.weights[0]]
    assert any(block.error_after < block.error_before for block in with_experts)
    assert all(block.target == "output" for block in with_experts) == (family in REFIT_NOTES)


def test_weights_that_were_lost_are_found_again() -> None:
    """The original's own down projections solve the problem: with tokens enough they come back."""
    model, batches = tiny_model("mixtral", torch.float64), drawn_batches(120)
    damaged, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for block in find_blocks(damaged):
        block.experts.down_proj.data += 0.05 * torch.randn(block.experts.down_proj.shape, generator=draw)
    before = (logits_of(damaged) - logits_of(model)).norm()
    refit_model(model, damaged, batches)
    assert (logits_of(damaged) - logits_of(model)).norm() < 1e-3 * before


@pytest.mark.parametrize("cuts", [{"width": 8}, {"layers": [0, 2, 3]}, {"keep": 4, "width": 8, "layers": [0, 1, 3]}], ids=str)
def test_every_kind_of_cut_is_refit(cuts: dict[str, object]) -> None:
    model, batches = tiny_family("mixtral"), drawn_batches()
    cut, expected = cut_copy(model, **cuts), text_logits(model)
    pruned, kept = (text_logits(cut) - expected).norm(), cuts.get("layers")
    result = refit_model(model, cut, batches, kept)  # type: ignore[arg-type]
    assert (text_logits(cut) - expected).norm() < 0.9 * pruned
    assert len(result.blocks) == (len(kept) if kept else 4)  # type: ignore[arg-type]


def test_what_a_dropped_layer_did_is_part_of_the_target() -> None:
    """With the layers behind a gap told, what is refit comes nearer to the original than with another layer's output."""
    model, batches = tiny_family("mixtral"), drawn_batches()
    expected, gaps = text_logits(model), {}
    for kept in ([0, 1, 3], [0, 1, 2]):  # the second is not what was cut
        cut = cut_copy(model, layers=[0, 1, 3])
        refit_model(model, cut, batches, kept)
        gaps[kept[-1]] = (text_logits(cut) - expected).norm()
    assert gaps[3] < gaps[2]


def test_groups_that_are_solved_one_after_another_come_near_to_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_family("mixtral"), drawn_batches()
    errors = []
    for channels in (8192, 16):  # the second: an expert at a time
        monkeypatch.setattr(tokens, "GROUP_CHANNELS", channels)
        result = refit_model(model, cut_copy(model), batches)
        errors.append(result.blocks[0])
    assert len(errors[0].penalties) == 1 and len(errors[1].penalties) == 4
    assert errors[1].error_after < 0.6 * errors[0].error_before
    assert errors[1].error_after == pytest.approx(errors[0].error_after, rel=0.2)


def test_the_batches_that_sequences_stand_in_do_not_matter() -> None:
    """Which are held out follows from their tokens."""
    model = tiny_model("mixtral", torch.float64)
    whole = {name: torch.cat([batch[name] for batch in drawn_batches()]) for name in ("input_ids", "attention_mask")}
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = [cut_copy(model) for _ in range(2)]
    batched = [drawn_batches(), [{name: tensor[rows] for name, tensor in whole.items()} for rows in order.split(7)]]
    results = [refit_model(model, cut, batches) for cut, batches in zip(found, batched, strict=True)]
    assert (results[0].tokens, results[0].held_out) == (results[1].tokens, results[1].held_out)
    assert (logits_of(found[0]) - logits_of(found[1])).abs().max() < 1e-7


def test_tokens_of_answers_count_more() -> None:
    """What is told to be an answer comes nearer to the original than with all tokens alike."""
    model, batches = tiny_family("mixtral"), drawn_batches()
    answers = [batch | {"completion_mask": batch["attention_mask"] * (batch["input_ids"] < 20)} for batch in batches]
    gaps = []
    for told in (batches, answers):
        cut = cut_copy(model)
        refit_model(model, cut, told)
        gaps.append(
            sum(
                float((cut(**batch).logits - model(**batch).logits)[answer["completion_mask"].bool()].square().sum())
                for batch, answer in zip(batches, answers, strict=True)
            )
        )
    assert gaps[1] < 0.99 * gaps[0]


def test_too_few_sequences_are_refused() -> None:
    model = tiny_family("mixtral")
    with raises("refit.too-few-examples", "pruning.refit.examples"):
        refit_model(model, cut_copy(model), drawn_batches(1, size=1))


def test_a_damaged_weight_is_refused() -> None:
    model = tiny_family("mixtral")
    cut = cut_copy(model)
    find_blocks(cut)[1].experts.down_proj.data[0, 0, 0] = torch.nan
    with raises("refit.not-finite"):
        refit_model(model, cut, drawn_batches())
