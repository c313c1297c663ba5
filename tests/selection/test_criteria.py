import pytest
import torch

from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.runtime.errors import PollardError
from toolkit.selection import CRITERIA, SCORES

# Per statistic what the prompt and the completion tokens left for experts 0…3; nothing reached expert 3.
WATCHED = {
    "count": ([4, 2, 0, 0], [1, 3, 2, 0]),
    "gate_sum": ([2.0, 1.5, 0, 0], [0.5, 1.0, 1.5, 0]),
    "norm_sum": ([8.0, 6.0, 0, 0], [1.0, 3.0, 10.0, 0]),
    "gated_norm_sum": ([4.0, 4.5, 0, 0], [0.5, 1.0, 7.5, 0]),
    "probability_sum": ([1.5, 1.0, 0.5, 0.25], [1.0, 1.0, 0.5, 0.25]),
    "residual_shift_sum": ([0.5, 1.5, 0, 0], [0.25, 0.5, 2.0, 0]),
    "max_norm": ([3.0, 4.0, 0, 0], [1.0, 5.0, 6.0, 0]),
}


def watched(block: str = "mlp") -> ExpertStatistics:
    vectors = {
        f"{block}/{name}/{part}": torch.tensor(values, dtype=torch.float64)
        for name, both in WATCHED.items()
        for part, values in zip(("prompt", "completion"), both, strict=True)
    }
    return ExpertStatistics(vectors, {"blocks": {block: {"experts": 4, "experts_per_token": 2}}})


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
    ],
)
def test_a_criterion_is_its_formula(criterion: str, tokens: Tokens, scores: list[float]) -> None:
    found = SCORES[criterion](watched(), "mlp", tokens, 0)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(scores, rel=1e-15)


def test_random_depends_on_seed_and_block_and_on_nothing_else() -> None:
    random = SCORES["random"]
    scores = random(watched(), "mlp", "all", 3)
    other = watched()
    for vector in other.vectors.values():
        vector += 1
    assert torch.equal(random(other, "mlp", "prompt", 3), scores)
    assert not torch.equal(random(watched(), "mlp", "all", 4), scores)
    assert not torch.equal(random(watched("other"), "other", "all", 3), scores)


def test_random_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    SCORES["random"](watched(), "mlp", "all", 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_says_what_it_is_in_one_line(criterion: str) -> None:
    summary, *more = (CRITERIA[criterion].__doc__ or "").splitlines()
    assert summary.endswith(".") and (not more or not more[0])


def test_what_a_family_does_not_show_is_missing_with_the_reason() -> None:
    statistics = watched()
    del statistics.vectors["mlp/probability_sum/prompt"]
    with pytest.raises(PollardError, match=r"no `probability_sum` .* its router's scores are no softmax .* another criterion\."):
        SCORES["soft_activation"](statistics, "mlp", "all", 0)


def test_reconstruction_without_its_search_says_how_to_get_it() -> None:
    with pytest.raises(PollardError, match=r'hold no layerwise reconstruction search.* reconstruction="layerwise"\), or'):
        CRITERIA["reconstruction"](watched(), "mlp", 2)
    statistics = watched()
    statistics.about["reconstruction"] = {"progressive": {"mlp": {"keep": {"3": {"kept": [0, 1, 2], "loss": 1.0}}}}}
    assert CRITERIA["reconstruction"](statistics, "mlp", 3, "progressive") == [0, 1, 2]
    with pytest.raises(PollardError, match=r"has no set of 2 experts \(searched: 3\)\. Calibrate again for keep=2"):
        CRITERIA["reconstruction"](statistics, "mlp", 2, "progressive")
    with pytest.raises(PollardError, match=r"pruning\.criterion=reconstruction pruning\.mode=layerwise"):
        CRITERIA["reconstruction"](statistics, "mlp", 3, "layerwise")
