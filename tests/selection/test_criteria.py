import pytest
import torch
from conftest import raises

from toolkit.cuts.statistics import (
    BlockSearchResult,
    BlockStatistics,
    ExpertStatistics,
    StatisticsFacts,
    SubsetResult,
    Tokens,
)
from toolkit.recipe.schema import PruningRecipe
from toolkit.selection import CRITERIA, ScoreCriterion
from toolkit.selection.criteria import Choice, Score

# Per statistic what the prompt and the completion tokens left for experts 0…3; nothing reached expert 3.
OBSERVED = {
    "count": ([4, 2, 0, 0], [1, 3, 2, 0]),
    "gate_sum": ([2.0, 1.5, 0, 0], [0.5, 1.0, 1.5, 0]),
    "norm_sum": ([8.0, 6.0, 0, 0], [1.0, 3.0, 10.0, 0]),
    "gated_norm_sum": ([4.0, 4.5, 0, 0], [0.5, 1.0, 7.5, 0]),
    "probability_sum": ([1.5, 1.0, 0.5, 0.25], [1.0, 1.0, 0.5, 0.25]),
    "residual_shift_sum": ([0.5, 1.5, 0, 0], [0.25, 0.5, 2.0, 0]),
    "max_norm": ([3.0, 4.0, 0, 0], [1.0, 5.0, 6.0, 0]),
    "norm_square_sum": ([16.0, 18.0, 0, 0], [1.0, 3.0, 52.0, 0]),
}
AIMER = [0.5, 0.75, 0.25, 1.0]  # of the weights, which experts without tokens have too


def score(criterion: str) -> Score:
    rule = CRITERIA[criterion]
    assert isinstance(rule, ScoreCriterion)
    return rule.score


def observed(block: str = "mlp") -> ExpertStatistics:
    vectors = {
        f"{block}/{name}/{part}": torch.tensor(values, dtype=torch.float64)
        for name, both in OBSERVED.items()
        for part, values in zip(("prompt", "completion"), both, strict=True)
    }
    vectors[f"{block}/aimer/weights"] = torch.tensor(AIMER, dtype=torch.float64)
    return ExpertStatistics(vectors, StatisticsFacts({block: BlockStatistics(4, 2)}))


@pytest.mark.parametrize(
    ("criterion", "tokens", "scores"),
    [
        ("frequency", "all", [5, 5, 2, 0]),
        ("frequency", "prompt", [4, 2, 0, 0]),
        ("frequency", "completion", [1, 3, 2, 0]),
        ("gate_weight", "all", [2.5, 2.5, 1.5, 0]),
        ("gate_weight", "completion", [0.5, 1.0, 1.5, 0]),
        ("ean", "all", [9, 9, 10, 0]),
        ("ean", "prompt", [8, 6, 0, 0]),
        ("weighted_ean", "all", [4.5, 5.5, 7.5, 0]),
        ("weighted_ean", "prompt", [4.0, 4.5, 0, 0]),
        ("reap", "all", [4.5 / 5, 5.5 / 5, 7.5 / 2, 0]),
        ("reap", "prompt", [4.0 / 4, 4.5 / 2, 0, 0]),
        ("reap", "completion", [0.5 / 1, 1.0 / 3, 7.5 / 2, 0]),
        ("soft_activation", "all", [2.5, 2.0, 1.0, 0.5]),
        ("easy_ep", "all", [0.75, 2.0, 2.0, 0]),
        ("easy_ep", "prompt", [0.5, 1.5, 0, 0]),
        ("max_activation", "all", [3.0, 5.0, 6.0, 0]),
        ("mean_activation", "all", [9 / 5, 9 / 5, 10 / 2, 0]),
        ("mean_activation", "prompt", [8 / 4, 6 / 2, 0, 0]),
        ("mean_squared_activation", "all", [17 / 5, 21 / 5, 52 / 2, 0]),
        ("mean_squared_activation", "completion", [1 / 1, 3 / 3, 52 / 2, 0]),
        ("aimer", "all", [-0.5, -0.75, -0.25, -1.0]),
        ("aimer", "prompt", [-0.5, -0.75, -0.25, -1.0]),
    ],
)
def test_a_criterion_is_its_formula(criterion: str, tokens: Tokens, scores: list[float]) -> None:
    found = score(criterion)(observed(), "mlp", tokens, 0)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(scores, rel=1e-15)


def test_random_depends_on_seed_and_block_and_on_nothing_else() -> None:
    random = score("random")
    scores = random(observed(), "mlp", "all", 3)
    other = observed()
    for vector in other.vectors.values():
        vector += 1
    assert torch.equal(random(other, "mlp", "prompt", 3), scores)
    assert not torch.equal(random(observed(), "mlp", "all", 4), scores)
    assert not torch.equal(random(observed("other"), "other", "all", 3), scores)


# Expert 3, which no token reached, stays where its weights say so.
def test_aimer_keeps_the_lowest_ratio_whatever_was_observed() -> None:
    statistics = observed()
    assert CRITERIA["aimer"].choose(statistics, "mlp", Choice(2)).kept == [0, 2]
    statistics.vectors["mlp/aimer/weights"] = torch.tensor([0.5, 0.75, 0.9, 0.25], dtype=torch.float64)
    assert CRITERIA["aimer"].choose(statistics, "mlp", Choice(2)).kept == [0, 3]


def test_random_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    score("random")(observed(), "mlp", "all", 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_says_what_it_is_in_one_line(criterion: str) -> None:
    assert CRITERIA[criterion].meaning.endswith(".") and "\n" not in CRITERIA[criterion].meaning


# What a criterion declares is what it reads: neither more is needed, nor is less missing.
@pytest.mark.parametrize("criterion", [name for name, rule in CRITERIA.items() if isinstance(rule, ScoreCriterion)])
def test_a_score_reads_the_statistics_that_it_declares(criterion: str) -> None:
    rule = CRITERIA[criterion]
    assert isinstance(rule, ScoreCriterion)
    for statistic in (*OBSERVED, "aimer"):
        lacking = observed()
        lacking.vectors = {name: vector for name, vector in lacking.vectors.items() if f"/{statistic}/" not in name}
        if statistic in rule.reads:
            with raises("statistics.missing", f"`{statistic}`"):
                rule.score(lacking, "mlp", "all", 0)
        else:
            rule.score(lacking, "mlp", "all", 0)


def test_what_a_family_does_not_show_is_missing_with_the_reason() -> None:
    statistics = observed()
    del statistics.vectors["mlp/probability_sum/prompt"]
    with raises("statistics.missing", "`probability_sum`", "softmax", "another criterion"):
        score("soft_activation")(statistics, "mlp", "all", 0)


def test_reconstruction_without_its_search_says_how_to_get_it() -> None:
    rule, statistics = CRITERIA["reconstruction"], observed()
    with raises("selection.no-search", "layerwise", 'reconstruction="layerwise")'):
        rule.choose(statistics, "mlp", Choice(2))
    found = BlockSearchResult("exhaustive", 10, 10, {3: SubsetResult([0, 1, 2], 1.0)})
    statistics.about.reconstruction = {"progressive": {"mlp": found}}
    assert rule.choose(statistics, "mlp", Choice(3, mode="progressive")) == ([0, 1, 2], None)
    with raises("selection.other-keep", "mlp", "2 experts", "(searched: 3)"):
        rule.choose(statistics, "mlp", Choice(2, mode="progressive"))
    with raises("selection.no-search", "pruning.criterion=reconstruction pruning.mode=layerwise"):
        rule.choose(statistics, "mlp", Choice(3))


# Calibration makes one search for every size, or one for the given size alone: its fingerprint says which.
def test_only_reconstruction_asks_calibration_for_a_search() -> None:
    for name, rule in CRITERIA.items():
        searches = [rule.search(PruningRecipe(criterion=name, keep=0.5, mode=mode)) for mode in ("layerwise", "progressive")]
        if rule.searched:
            assert [search.identity for search in searches if search] == [["layerwise"], ["progressive", 0.5]]
        else:
            assert searches == [None, None]
