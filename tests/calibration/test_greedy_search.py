"""Where subsets cannot be enumerated: how near the search comes, and what it is better than."""

import resource
import statistics as numbers
from itertools import pairwise

import pytest
from conftest import tiny_model
from honest import batches_of, honest_losses

import toolkit
from toolkit.calibration import calibrate, reconstruction
from toolkit.calibration import greedy_search as search


def layerwise(model, batches) -> dict:
    return calibrate(model, batches, reconstruction=True).about.reconstruction["layerwise"]


@pytest.fixture
def not_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "ENUMERABLE", 0)
    monkeypatch.setattr(reconstruction, "ENUMERABLE_ONE_BY_ONE", 0)


def test_the_search_comes_within_one_per_cent_of_the_best_of_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = {keep: [] for keep in (4, 8, 12)}
    for seed in range(4):
        model, batches = tiny_model("mixtral", seed=seed, num_local_experts=16), batches_of(3, seed=seed)
        best = layerwise(model, batches)
        with monkeypatch.context() as patch:
            patch.setattr(reconstruction, "ENUMERABLE", 0)
            patch.setattr(reconstruction, "ENUMERABLE_ONE_BY_ONE", 0)
            found = layerwise(model, batches)
        for block, expected in best.items():
            assert (expected.search, found[block].search) == ("exhaustive", "greedy and swaps")
            for keep, of_this in gaps.items():
                entry = found[block].keep[keep]
                of_this.append(entry.loss / expected.keep[keep].loss - 1)
                assert entry.lower_bound <= expected.keep[keep].loss <= entry.loss * (1 + 1e-6)
    for of_this in gaps.values():
        assert numbers.median(of_this) <= 0.01 and max(of_this) <= 0.02


def test_the_losses_are_those_of_running_the_block(family: str, not_enumerated: None) -> None:
    model, batches = tiny_model(family), batches_of(3)
    for number, found in enumerate(layerwise(model, batches).values()):
        entries = list(found.keep.values())
        expected = honest_losses(model, batches, number, [entry.kept for entry in entries])
        assert [entry.loss for entry in entries] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_smaller_set_lies_within_the_larger_one(not_enumerated: None) -> None:
    for found in layerwise(tiny_model("qwen3_moe", num_experts=12, norm_topk_prob=True), batches_of(2)).values():
        chain = [set(entry.kept) for entry in found.keep.values()]
        assert [len(kept) for kept in chain] == list(range(12, 1, -1))
        assert all(smaller < larger for larger, smaller in pairwise(chain))


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_64_experts_to_32_beat_the_scores_on_the_objective_in_bounded_memory(family: str) -> None:
    model = tiny_model(family, num_experts=64, num_experts_per_tok=4, num_hidden_layers=1)
    batches = batches_of(3, size=4, length=30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statistics = calibrate(model, batches, reconstruction=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 2**10  # KiB
    kept = {
        criterion: toolkit.select(statistics, criterion, keep=32).blocks[statistics.blocks[0]].kept
        for criterion in ("reconstruction", "frequency", "reap", "weighted_ean")
    }
    ours, *theirs = honest_losses(model, batches, 0, kept.values())
    entry = statistics.about.reconstruction["layerwise"][statistics.blocks[0]].keep[32]
    assert entry.loss == pytest.approx(ours, rel=1e-4) and entry.lower_bound < ours
    assert ours < min(theirs)


def test_too_many_tokens_are_thinned_evenly_and_the_result_says_so(not_enumerated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_model("mixtral", num_local_experts=16), batches_of(6, length=40)
    whole = layerwise(model, batches)
    monkeypatch.setattr(search, "GRAM_BYTES", 2 * 16**2 * 4 * 130)  # 130 tokens in each of two blocks
    for block, found in layerwise(model, batches).items():
        assert found.tokens == whole[block].tokens == whole[block].tokens_searched == 6 * 75
        assert 65 <= found.tokens_searched <= 130
        # The loss of all tokens is estimated from these
        assert found.keep[8].loss == pytest.approx(whole[block].keep[8].loss, rel=0.2)


def test_no_swap_with_an_expert_outside_helps(not_enumerated: None) -> None:
    model, batches = tiny_model("mixtral", num_local_experts=12), batches_of(3)
    found = layerwise(model, batches)["model.layers.0.mlp"].keep[6]
    kept = found.kept
    swapped = [
        sorted({*kept, inside} - {outside}) for inside in range(12) if inside not in kept for outside in kept
    ]  # fmt: skip
    assert min(honest_losses(model, batches, 0, swapped)) >= found.loss * (1 - 1e-5)
