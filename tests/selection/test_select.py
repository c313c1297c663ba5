from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import raises

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import BlockSearchResult, BlockStatistics, ExpertStatistics, StatisticsFacts, SubsetResult
from toolkit.selection import CRITERIA, experts_to_activate, experts_to_keep, kept_unobserved, select

SCORES = CRITERIA.keys() - {"reconstruction"}
MEANS = {"reap", "mean_activation", "mean_squared_activation"}  # per token, so that equal sums are no equal scores
BLIND = {"random", "aimer"}
STATISTICS = (
    "count", "gate_sum", "norm_sum", "gated_norm_sum", "max_norm", "residual_shift_sum", "probability_sum", "norm_square_sum",
)  # fmt: skip


def observed(
    completion: list[float], prompt: list[float] | None = None, blocks: int = 1, **changes: list[float]
) -> ExpertStatistics:
    """Every statistic is `completion` and `prompt` (zeros unless given), but for the completion's `changes`."""
    parts = {"prompt": prompt or [0.0] * len(completion), "completion": completion}
    names = [f"layers.{i}.mlp" for i in range(blocks)]
    vectors = {
        f"{block}/{statistic}/{part}": torch.tensor(
            changes.get(statistic, values) if part == "completion" else values, dtype=torch.float64
        )
        for block in names
        for statistic in STATISTICS
        for part, values in parts.items()
    }
    facts = {name: BlockStatistics(len(completion), 1, tokens={"prompt": 3, "completion": 4}) for name in names}
    return ExpertStatistics(vectors, StatisticsFacts(facts, "some/model", task="gsm8k"))


def kept(plan: Plan) -> list[int]:
    return plan.blocks["layers.0.mlp"].kept


@pytest.mark.parametrize("criterion", sorted(SCORES - BLIND - MEANS))
def test_the_highest_scores_stay_in_ascending_order(criterion: str) -> None:
    plan = select(observed([5, 1, 7, 2, 6]), criterion, keep=3)
    assert kept(plan) == [0, 2, 4]
    assert plan.blocks["layers.0.mlp"].scores == [5, 1, 7, 2, 6]


def test_reap_prefers_a_rare_strong_expert_where_sums_prefer_a_busy_one() -> None:
    statistics = observed([100, 1, 10], gated_norm_sum=[100, 9, 10])
    assert (kept(select(statistics, "reap", 1)), kept(select(statistics, "weighted_ean", 1))) == ([1], [0])


@pytest.mark.parametrize("criterion", sorted(SCORES - BLIND))
def test_of_equal_scores_the_lower_index_stays(criterion: str) -> None:
    assert kept(select(observed([2, 3, 2, 3, 2]), criterion, keep=3)) == ([0, 1, 2] if criterion in MEANS else [0, 1, 3])


# An observed expert of score 0 says something; an unobserved one says nothing, whatever a criterion makes of it.
@pytest.mark.parametrize("criterion", sorted(SCORES - BLIND - {"frequency"}))
def test_an_unobserved_expert_ranks_below_every_observed_one(criterion: str) -> None:
    nothing = {name: [0.0, 0.0, 0.0, 0.0] for name in STATISTICS}
    assert kept(select(observed([0, 0, 0, 0], **(nothing | {"count": [0, 1, 0, 1]})), criterion, keep=3)) == [0, 1, 3]
    assert kept(select(observed([0, 0, 0, 0], **(nothing | {"count": [0, 1, 0, 1]})), criterion, keep=2)) == [1, 3]
    claimed = {name: [9.0, 1.0, 9.0, 1.0] for name in STATISTICS}
    assert kept(select(observed([0, 0, 0, 0], **(claimed | {"count": [0, 1, 0, 1]})), criterion, keep=2)) == [1, 3]


def test_random_does_not_look_at_the_statistics() -> None:
    seeds = range(20)
    blind = [kept(select(observed([1, 1, 1, 1]), "random", 2, seed=seed)) for seed in seeds]
    seeing = [kept(select(observed([0, 1, 0, 1]), "random", 2, tokens="prompt", seed=seed)) for seed in seeds]
    assert blind == seeing and len(set(map(tuple, blind))) > 3


def test_random_chooses_anew_in_every_block_and_again_for_the_same_seed() -> None:
    statistics = observed([1] * 16, blocks=4)
    plan = select(statistics, "random", keep=8, seed=3)
    assert len({tuple(block.kept) for block in plan.blocks.values()}) == 4
    assert select(statistics, "random", keep=8, seed=3) == plan


def test_only_the_chosen_tokens_decide() -> None:
    statistics = observed(completion=[0, 1, 2, 9], prompt=[8, 1, 2, 0])
    choices = {tokens: kept(select(statistics, "frequency", 2, tokens=tokens)) for tokens in ("all", "prompt", "completion")}
    assert choices == {"all": [0, 3], "prompt": [0, 2], "completion": [2, 3]}


def test_kept_experts_that_no_chosen_token_reached_are_counted() -> None:
    statistics = observed(completion=[0, 1, 2, 0], prompt=[8, 0, 0, 0], blocks=2)
    counts = {
        tokens: kept_unobserved(statistics, select(statistics, keep=3, tokens=tokens))
        for tokens in ("all", "prompt", "completion")
    }
    assert counts == {"all": 0, "prompt": 4, "completion": 2}  # over both blocks


def test_a_plan_says_how_it_came_about_and_survives_its_file(tmp_path: Path) -> None:
    statistics = observed([1, 2, 3, 4], blocks=2)
    statistics.about.examples, statistics.about.fingerprint = 512, "f"
    plan = select(statistics, "reap", 0.5, tokens="completion", seed=3)
    assert (plan.model, plan.criterion, plan.tokens, plan.seed) == ("some/model", "reap", "completion", 3)
    assert (plan.keep, plan.experts_per_token, list(plan.blocks)) == (2, 1, statistics.blocks)
    assert plan.calibration == {"task": "gsm8k", "examples": 512, "fingerprint": "f", "tokens": 7}
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("keep", "experts", "number"),
    [(4, 8, 4), (8, 8, 8), (1, 8, 1), (0.5, 8, 4), (0.3, 8, 2), (0.35, 8, 3), (0.999, 8, 8), (0.01, 8, 1), (0.25, 6, 2)],
)
def test_a_fraction_means_the_nearest_number_and_at_least_one(keep: float, experts: int, number: int) -> None:
    assert experts_to_keep(keep, experts) == number


@pytest.mark.parametrize("keep", [9, 0, -1, 1.5, 0.0, 1.0, float("nan")])
def test_an_impossible_keep_is_refused_with_what_is_possible(keep: Any) -> None:
    with raises("selection.keep", f"pruning.keep is {keep}", "1…8"):
        experts_to_keep(keep, 8)


@pytest.mark.parametrize(
    ("asked", "keep", "most", "number"), [(None, 4, 8, 4), (None, 16, 8, 8), (2, 4, 8, 2), (1, 1, 8, 1), (8, 8, 8, 8)]
)
def test_a_token_activates_as_many_as_now_where_enough_are_kept(asked: int | None, keep: int, most: int, number: int) -> None:
    assert experts_to_activate(asked, keep, most) == number


@pytest.mark.parametrize(("asked", "keep", "most"), [(0, 4, 8), (5, 4, 8), (9, 16, 8)])
def test_an_impossible_number_per_token_is_refused_with_what_is_possible(asked: int, keep: int, most: int) -> None:
    with raises("selection.experts-per-token", f"experts_per_token is {asked}", most, keep, f"1…{min(most, keep)}"):
        experts_to_activate(asked, keep, most)


def test_a_plan_carries_how_many_a_token_activates() -> None:
    statistics = observed([1, 2, 3, 4])
    statistics.about.blocks["layers.0.mlp"].experts_per_token = 3
    assert select(statistics, keep=2).experts_per_token == 2
    assert select(statistics, keep=4).experts_per_token == 3
    assert select(statistics, keep=4, experts_per_token=1).experts_per_token == 1


# The best eight are all in the first group: ranked across groups, they would be all that stays.
def test_every_group_keeps_equally_many_ranked_within_it() -> None:
    statistics = observed([16, 15, 14, 13, 9, 1, 2, 8])
    statistics.about.blocks["layers.0.mlp"].groups = 2
    assert kept(select(statistics, keep=4)) == [0, 1, 4, 7]
    assert kept(select(statistics, keep=0.6)) == [0, 1, 4, 7]  # nearest to 4.8 with as many in each
    with raises("selection.groups", "pruning.keep is 3", "2 groups"):
        select(statistics, keep=3)


def test_an_unknown_criterion_is_refused_with_those_that_exist() -> None:
    with raises("selection.criterion", "'reep'", "`reap`", "random, frequency,"):
        select(observed([1, 2]), "reep", 1)


def test_reconstruction_takes_the_set_that_was_found() -> None:
    statistics = observed([5, 1, 7, 2, 6], blocks=2)
    sets = {"layers.0.mlp": [0, 3], "layers.1.mlp": [1, 4]}
    searched = {name: BlockSearchResult("exhaustive", 7, 7, {2: SubsetResult(kept, 1.0)}) for name, kept in sets.items()}
    statistics.about.reconstruction = {"layerwise": searched}
    plan = select(statistics, "reconstruction", keep=2)
    assert {name: block.kept for name, block in plan.blocks.items()} == sets
    assert (plan.mode, plan.blocks["layers.0.mlp"].scores) == ("layerwise", None)
    assert select(statistics, "frequency", keep=2).mode is None
    with raises("selection.tokens", "reconstruction", "pruning.tokens", "prompt"):
        select(statistics, "reconstruction", keep=2, tokens="prompt")
