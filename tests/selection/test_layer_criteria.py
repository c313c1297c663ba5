"""Laws of the rules by which layers stay. Losses and similarities are written down here; test_layer_similarity.py measures."""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch
from conftest import raises

from toolkit.cuts.layer_similarities import LayerSimilarities, SourceSimilarities
from toolkit.selection import LAYER_CRITERIA, LayerEvidence, choose_layers, evidence_needed, layers_to_keep

TOTAL = 6


def similarities(seed: int = 0, total: int = TOTAL) -> LayerSimilarities:
    """Of made-up hidden states, so that the angles between them are possible ones; prompt and completion differ."""
    generator = torch.Generator().manual_seed(seed)
    cosine, angle = {}, {}
    for part in ("prompt", "completion"):
        states = torch.randn(total + 1, 8, generator=generator, dtype=torch.float64).cumsum(0)
        cosines = torch.nn.functional.cosine_similarity(states[:, None], states[None], dim=-1).clamp(-1, 1)
        cosine[part], angle[part] = 10 * cosines.diagonal(1), 10 * cosines.arccos() / math.pi
    return LayerSimilarities([SourceSimilarities(cosine, angle, {"prompt": 10, "completion": 10})])


def loss(kept: Sequence[int]) -> float:
    """Every layer is worth something of its own; 1 and 2 stand for each other, so that the second of them costs more."""
    gone = set(range(TOTAL)) - set(kept)
    worth = {0: 5.0, 1: 0.1, 2: 0.15, 3: 0.4, 4: 0.3, 5: 2.0}
    return 1.0 + sum(worth[layer] for layer in gone) + 3.0 * ({1, 2} <= gone)


def evidence(**changes: object) -> LayerEvidence:
    values: dict = {"total": TOTAL, "refusal": lambda kept: None, "similarities": similarities(), "loss": loss} | changes
    return LayerEvidence(**values)


def refusing(*stays: int):
    """A model that cannot do without these layers."""
    return lambda kept: next((f"layer {layer} lends its keys" for layer in stays if layer not in kept), None)


@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
@pytest.mark.parametrize("number", range(1, TOTAL + 1))
def test_every_criterion_keeps_the_number_and_accounts_for_every_layer(criterion: str, number: int) -> None:
    choice = choose_layers(criterion, number, evidence())
    gone = [removed.layer for removed in choice.removed]
    assert len(choice.kept) == number and choice.kept == sorted(choice.kept)
    assert sorted([*choice.kept, *gone]) == list(range(TOTAL)) and choice.criterion == criterion and not choice.refused
    assert choice.scores is None or len(choice.scores) == TOTAL


@pytest.mark.parametrize("criterion", ["dev_loss", "influence", "top", "random"])
def test_fewer_layers_are_part_of_more_and_go_in_the_same_order(criterion: str) -> None:
    choices = [choose_layers(criterion, number, evidence()) for number in range(1, TOTAL)]
    for fewer, more in pairwise(choices):
        assert set(fewer.kept) < set(more.kept) and fewer.removed[: len(more.removed)] == more.removed


def test_dev_loss_measures_again_what_the_absence_of_each_costs_now() -> None:
    choice = choose_layers("dev_loss", 3, evidence())
    # By the first round's rises alone 1, 2, 4 would go; without 1, layer 2 has become dear
    assert [removed.layer for removed in choice.removed] == [1, 4, 3] and choice.kept == [0, 2, 5]
    assert [removed.loss for removed in choice.removed] == pytest.approx([1.1, 1.4, 1.8]) and choice.loss == 1.0
    assert choice.scores == pytest.approx([5.0, 0.1, 3.15, 0.4, 0.3, 2.0])


def test_dev_loss_asks_for_a_set_of_layers_once_and_of_equal_ones_drops_the_last() -> None:
    asked = []

    def equal(kept: Sequence[int]) -> float:
        asked.append(tuple(kept))
        return 1.0

    assert choose_layers("dev_loss", 4, evidence(loss=equal)).kept == [0, 1, 2, 3]
    assert len(asked) == len(set(asked)) == 1 + 6 + 5


def test_dev_loss_with_a_loss_that_is_not_finite() -> None:
    def overflowing(kept: Sequence[int]) -> float:
        return math.nan if 0 not in kept else loss(kept)

    choice = choose_layers("dev_loss", 1, evidence(loss=overflowing))
    assert choice.kept == [0] and choice.scores and choice.scores[0] is None
    with raises("selection.dev-loss", "nan"):
        choose_layers("dev_loss", 4, evidence(loss=lambda kept: math.nan))


@pytest.mark.parametrize("tokens", ["all", "prompt", "completion"])
def test_influence_drops_those_that_turn_the_hidden_states_least(tokens) -> None:
    found = similarities()
    cosine = found.sources[0].cosine
    mean = (cosine["prompt"] + cosine["completion"]) / 20 if tokens == "all" else cosine[tokens] / 10
    choice = choose_layers("influence", 4, evidence(tokens=tokens))
    assert [removed.layer for removed in choice.removed] == mean.argsort(descending=True).tolist()[:2]
    assert choice.scores == pytest.approx((1 - mean).tolist())


@pytest.mark.parametrize("number", range(1, TOTAL))
@pytest.mark.parametrize("seed", range(5))
def test_angular_drops_the_run_whose_ends_are_most_alike_and_not_the_one_beside_it(number: int, seed: int) -> None:
    found, gap = similarities(seed), TOTAL - number
    # From the definition: layers l … l+n-1 lie between h_l, which enters the first, and h_{l+n}, which the last returns
    angles = {}
    for layer in range(TOTAL - gap + 1):
        parts = [found.sources[0].angle[part][layer][layer + gap] for part in ("prompt", "completion")]
        angles[layer] = float(sum(parts)) / 20
    start = min(angles, key=lambda layer: angles[layer])
    choice = choose_layers("angular", number, evidence(similarities=found))
    assert [removed.layer for removed in choice.removed] == list(range(start, start + gap))
    assert choice.scores and min(choice.scores) == pytest.approx(angles[start])
    assert choice.scores[0] == pytest.approx(angles[0])  # layer 0 is in the first run only


def test_top_drops_the_last_ones_before_the_final_one() -> None:
    assert choose_layers("top", 4, evidence()).kept == [0, 1, 2, 5]
    assert choose_layers("top", 1, evidence()).kept == [5]


def test_random_is_another_draw_for_another_seed_and_the_same_for_the_same() -> None:
    draws = [tuple(choose_layers("random", 3, evidence(seed=seed)).kept) for seed in range(60)]
    assert draws == [tuple(choose_layers("random", 3, evidence(seed=seed)).kept) for seed in range(60)]
    assert len(set(draws)) > len(list(combinations(range(TOTAL), 3))) / 2


@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
def test_layers_that_the_model_needs_are_passed_over_and_the_reason_is_reported(criterion: str) -> None:
    first = {choose_layers(criterion, TOTAL - 1, evidence()).removed[0].layer}
    choice = choose_layers(criterion, TOTAL - 1, evidence(refusal=refusing(*first)))
    assert first <= set(choice.kept) and choice.refused.keys() == first
    assert all(f"layer {layer} lends its keys" in choice.refused[layer] for layer in first)


def test_a_layer_can_go_once_those_that_borrow_from_it_are_gone() -> None:
    def lending(kept: Sequence[int]) -> str | None:
        return "layer 3 borrows from 4" if 3 in kept and 4 not in kept else None

    assert [removed.layer for removed in choose_layers("top", 3, evidence(refusal=lending)).removed] == [3, 4, 2]


@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
def test_too_few_that_can_go_are_an_error_with_the_reasons(criterion: str) -> None:
    with raises("selection.layers-refused", "asks for 2 layers", "layer 1 lends its keys", criterion):
        choose_layers(criterion, 2, evidence(refusal=refusing(1, 3, 5)))


def test_listed_layers_stay_whatever_the_criterion_and_nothing_is_measured() -> None:
    choice = choose_layers("dev_loss", [4, 0, 2], evidence(loss=None, similarities=None))
    assert choice.kept == [0, 2, 4] and choice.criterion == "given" and choice.scores is None
    assert evidence_needed("dev_loss", [0, 2, 4], TOTAL) == "nothing"
    with raises("selection.layers-refused", "1, 3, 5", "layer 3 lends its keys"):
        choose_layers("dev_loss", [0, 2, 4], evidence(refusal=refusing(3)))


def test_all_layers_need_no_measurement() -> None:
    assert evidence_needed("influence", TOTAL, TOTAL) == "nothing" and evidence_needed("influence", 4, TOTAL) == "similarities"
    assert choose_layers("influence", TOTAL, evidence(similarities=None)).kept == list(range(TOTAL))


@pytest.mark.parametrize(("layers", "number"), [(0.5, 3), (0.75, 4), (0.01, 1), (0.999, 6), (6, 6), ([5, 1], [1, 5])])
def test_what_layers_means(layers, number) -> None:
    assert layers_to_keep(layers, TOTAL) == number


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (0, "1…6"), (7, "has 6 decoder layers"), (-1, "1…6"), (1.0, "fraction in (0, 1)"), (0.0, "1…6"), (True, "True"),
        ([], "empty"), ([0, 6], "names layer 6"), ([-1], "names layer -1"), ([1, 1], "names layer 1 twice"), ([0.5], "numbers"),
        ([True], "numbers"),
    ],
)  # fmt: skip
def test_numbers_and_lists_that_fit_no_such_model(layers, named: str) -> None:
    with raises("selection.layers", "pruning.layers", named):
        layers_to_keep(layers, TOTAL)


def test_an_unknown_criterion_is_an_error_that_names_the_nearest() -> None:
    with raises("selection.layer-criterion", "influense", "influence"):
        choose_layers("influense", 3, evidence())
