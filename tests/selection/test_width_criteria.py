"""Laws of choosing channels: a criterion is its formula, every expert keeps its own best, and the plan says which."""

from pathlib import Path

import pytest
import torch
from conftest import raises

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import BlockStatistics, ChannelFacts, ExpertStatistics, StatisticsFacts, Tokens
from toolkit.cuts.width import WidthCut
from toolkit.selection import WIDTH_CRITERIA, WidthChoice, choose_channels, select
from toolkit.selection.width import model_width

BLOCK, MLP = "layers.0.mlp", "layers.0.mlp.shared_experts"
# Two experts of four channels, and an MLP of eight: per statistic prompt and completion
OBSERVED = {
    "channel_energy": ([[1.0, 4.0, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0]], [[3.0, 0.0, 4.0, 0.0], [1.0, 16.0, 4.0, 9.0]]),
    "channel_taylor": ([[2.0, -5.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], [[-3.0, 1.0, 2.0, 1.0], [-4.0, 1.0, 2.0, -3.0]]),
    "channel_fisher": ([[4.0, 9.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], [[9.0, 1.0, 4.0, 1.0], [8.0, 1.0, 4.0, 9.0]]),
}
DOWN_NORM = [[1.0, 2.0, 1.0, 0.5], [1.0, 0.5, 3.0, 1.0]]
MAGNITUDE = [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]


def observed(gradients: bool = True) -> ExpertStatistics:
    vectors = {f"{BLOCK}/count/{part}": torch.tensor([3.0, 2.0], dtype=torch.float64) for part in ("prompt", "completion")}
    vectors |= {name.replace("count", "gated_norm_sum"): vector for name, vector in vectors.items()}
    for statistic, both in OBSERVED.items():
        for part, values in zip(("prompt", "completion"), both, strict=True):
            if gradients or statistic == "channel_energy":
                vectors[f"{BLOCK}/{statistic}/{part}"] = torch.tensor(values, dtype=torch.float64)
                vectors[f"{MLP}/{statistic}/{part}"] = torch.tensor(values, dtype=torch.float64).flatten()
    for fact, values in (("down_norm", DOWN_NORM), ("channel_magnitude", MAGNITUDE)):
        vectors[f"{BLOCK}/{fact}/weights"] = torch.tensor(values, dtype=torch.float64)
        vectors[f"{MLP}/{fact}/weights"] = torch.tensor(values, dtype=torch.float64).flatten()
    blocks = {BLOCK: BlockStatistics(2, 1, tokens={"prompt": 3, "completion": 2})}
    channels = {BLOCK: ChannelFacts(4, 2), MLP: ChannelFacts(8)}
    return ExpertStatistics(vectors, StatisticsFacts(blocks, "some/model", channels=channels))


@pytest.mark.parametrize(
    ("criterion", "tokens", "scores"),
    [
        ("energy", "all", [[2.0, 4.0, 2.0, 1.5], [1.0, 2.0, 6.0, 3.0]]),
        ("energy", "prompt", [[1.0, 4.0, 0.0, 1.5], [0.0, 0.0, 0.0, 0.0]]),
        ("taylor", "all", [[1.0, 4.0, 2.0, 2.0], [4.0, 1.0, 2.0, 3.0]]),
        ("taylor", "completion", [[3.0, 1.0, 2.0, 1.0], [4.0, 1.0, 2.0, 3.0]]),
        ("fisher", "all", [[13.0, 10.0, 4.0, 2.0], [8.0, 1.0, 4.0, 9.0]]),
        ("magnitude", "prompt", MAGNITUDE),
    ],
)
def test_a_criterion_is_its_formula(criterion: str, tokens: Tokens, scores: list[list[float]]) -> None:
    expected = torch.tensor(scores, dtype=torch.float64)
    rule = WIDTH_CRITERIA[criterion]
    assert torch.equal(rule.score(observed(), BLOCK, tokens, 0), expected)
    assert torch.equal(rule.score(observed(), MLP, tokens, 0), expected.flatten())


@pytest.mark.parametrize("criterion", WIDTH_CRITERIA)
def test_every_criterion_says_what_it_is_and_declares_what_it_reads(criterion: str) -> None:
    rule = WIDTH_CRITERIA[criterion]
    assert rule.meaning.endswith(".") and "\n" not in rule.meaning
    for statistic in (*OBSERVED, "down_norm", "channel_magnitude"):
        lacking = observed()
        lacking.vectors = {name: vector for name, vector in lacking.vectors.items() if f"/{statistic}/" not in name}
        if statistic in rule.reads:
            with raises("statistics.missing", f"`{statistic}`"):
                rule.score(lacking, BLOCK, "all", 0)
        else:
            rule.score(lacking, BLOCK, "all", 0)
    assert rule.gradients == any(name in ("channel_taylor", "channel_fisher") for name in rule.reads)


def test_every_expert_keeps_its_own_best_channels_in_ascending_order() -> None:
    chosen = choose_channels(observed(), WidthChoice(2), {BLOCK: [0, 1]})
    assert chosen[BLOCK].tolist() == [[0, 1], [2, 3]]  # of two equal ones the lower
    assert chosen[MLP].tolist() == [0, 1, 6, 7]  # as large a part; of 2, 4, 2, 1.5, 1, 2, 6, 3 the best
    assert chosen[BLOCK].dtype == torch.int64


def test_rows_follow_the_kept_experts() -> None:
    both = choose_channels(observed(), WidthChoice(3, "fisher"), {BLOCK: [0, 1]})[BLOCK]
    assert torch.equal(choose_channels(observed(), WidthChoice(3, "fisher"), {BLOCK: [1]})[BLOCK], both[1:])


# No prompt token reached expert 1: nothing tells its channels apart.
def test_channels_of_an_expert_that_no_token_reached_are_kept_by_index() -> None:
    for criterion in ("energy", "taylor", "fisher"):
        assert choose_channels(observed(), WidthChoice(2, criterion, "prompt"), {BLOCK: [1]})[BLOCK].tolist() == [[0, 1]]


def test_random_draws_for_every_expert_and_depends_on_nothing_but_seed_and_name() -> None:
    statistics = observed()
    for name in (BLOCK, "layers.1.mlp"):
        statistics.about.channels[name] = ChannelFacts(64, 2)
    draw = WIDTH_CRITERIA["random"].score
    before = torch.get_rng_state()
    scores = draw(statistics, BLOCK, "all", 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert scores.shape == (2, 64) and not torch.equal(scores[0], scores[1])
    assert torch.equal(draw(statistics, BLOCK, "prompt", 3), scores)
    assert not torch.equal(draw(statistics, BLOCK, "all", 4), scores)
    assert not torch.equal(draw(statistics, "layers.1.mlp", "all", 3), scores)
    assert draw(statistics, MLP, "all", 3).shape == (8,)


def test_select_makes_a_plan_of_experts_and_channels(tmp_path: Path) -> None:
    statistics = observed()
    plan = select(statistics, "frequency", 1, width=0.5, width_criterion="fisher", tokens="completion", seed=3)
    width = plan.cut(WidthCut)
    assert width is not None and (plan.keep, width.keep, width.criterion) == (1, 2, "fisher")
    assert width.channels[BLOCK].tolist() == [[0, 2]] and len(width.channels[MLP]) == 4
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json").cut(WidthCut)
    assert loaded is not None and all(torch.equal(loaded.channels[name], kept) for name, kept in width.channels.items())


def test_all_experts_may_stay_and_a_plan_without_width_is_what_it_was() -> None:
    plan = select(observed(), "frequency", None, width=3, width_multiple=1)
    width = plan.cut(WidthCut)
    assert plan.blocks[BLOCK].kept == [0, 1] and width is not None and width.channels[BLOCK].shape == (2, 3)
    assert width.channels[MLP].shape == (6,)
    assert [cut.kind for cut in select(observed(), "frequency", 1).cuts] == ["experts"]


def test_what_cannot_be_is_refused() -> None:
    with raises("selection.width-criterion", "'enrgy'", "`energy`", "taylor"):
        select(observed(), keep=1, width=2, width_criterion="enrgy")
    with raises("selection.width", "5", "4 channels"):
        select(observed(), keep=1, width=5)
    with raises("selection.width-multiple", "3", "multiple of 2"):
        select(observed(), keep=1, width=3, width_multiple=2)
    with raises("selection.no-gradients", "taylor", 'channels="gradients"'):
        select(observed(gradients=False), keep=1, width=2, width_criterion="taylor")
    without = observed()
    without.about.channels = {}
    with raises("selection.no-channels", "channels=True"):
        select(without, keep=1, width=2)
    uneven = observed()
    uneven.about.channels[MLP] = ChannelFacts(6)
    with raises("width.alignment", MLP, "6 channels", "3/4"):
        choose_channels(uneven, WidthChoice(3, "random"), {BLOCK: [0]})
    assert model_width(uneven) == 4
