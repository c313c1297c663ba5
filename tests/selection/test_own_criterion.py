"""Law: a criterion of one's own is a criterion like the others; what it returns wrongly is one clear error."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import raises
from test_select import kept, observed

import toolkit
from toolkit.cuts.observed_block import ObservedBlock
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, mix
from toolkit.selection import CRITERIA, select


def own_reap(block: ObservedBlock) -> torch.Tensor:
    return block["gated_norm_sum"] / block["count"].clamp(min=1)


@pytest.mark.parametrize("tokens", ["all", "prompt", "completion"])
def test_reap_written_by_hand_is_reap(tokens: str) -> None:
    statistics = observed([5, 1, 7, 0, 6, 2], prompt=[1, 0, 2, 0, 9, 4], blocks=3, gated_norm_sum=[1, 9, 2, 0, 5, 5])
    one, other = (select(statistics, criterion, 3, tokens=tokens) for criterion in (own_reap, "reap"))  # type: ignore[arg-type]
    assert one.criterion == f"{__name__}:own_reap"
    assert one.blocks == other.blocks


def test_a_mix_is_weighted_as_for_every_criterion() -> None:
    parts = [observed([4, 1, 2, 3]), observed([1, 9, 2, 2])]
    mixed = mix(parts, ["a", "b"], [3.0, 1.0])
    assert select(mixed, own_reap, 2).blocks == select(mixed, "reap", 2).blocks


@pytest.mark.parametrize(
    ("returns", "scores"),
    [
        (lambda block: [1, 2, 3], [1, 2, 3]),
        (lambda block: np.float32([3, 1, 2]), [3, 1, 2]),
        (lambda block: torch.tensor([1, 0, 2]), [1, 0, 2]),
    ],
)
def test_lists_arrays_and_tensors_serve(returns: object, scores: list[float]) -> None:
    plan = select(observed([1, 1, 1]), returns, keep=1)  # type: ignore[arg-type]
    assert plan.blocks["layers.0.mlp"].scores == scores and kept(plan) == [scores.index(max(scores))]


def test_unobserved_experts_rank_last_and_ties_go_to_the_lower_index() -> None:
    assert kept(select(observed([0, 1, 1, 1]), lambda block: [9, 1, 1, 1], keep=2)) == [1, 2]


class Weighted:
    def __call__(self, block: ObservedBlock, power: float = 1.0) -> torch.Tensor:
        return block["gate_sum"] ** power


# What a plan file says must lead back to the function.
@pytest.mark.parametrize(
    ("criterion", "name"),
    [(own_reap, "own_reap"), (partial(Weighted(), power=2.0), "Weighted"), (Weighted(), "Weighted")],
)
def test_a_plan_names_the_function(criterion: object, name: str, tmp_path: Path) -> None:
    plan = select(observed([5, 1, 7]), criterion, keep=1)  # type: ignore[arg-type]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").criterion == f"{__name__}:{name}"


@pytest.mark.parametrize(
    ("criterion", "code", "words"),
    [
        (lambda block: [1, 2], "selection.own-shape", ["[2]", "layers.0.mlp", "[3]"]),
        (lambda block: torch.ones(3, 4), "selection.own-shape", ["[3, 4]"]),
        (lambda block: 1.0, "selection.own-shape", ["[]"]),
        (lambda block: None, "selection.own-shape", ["NoneType"]),
        (lambda block: "abc", "selection.own-shape", ["str"]),
        (lambda block: block["norm_sum"] / block["count"], "selection.own-not-finite", ["nan", "expert 1"]),
        (lambda block: [1, float("inf"), 0], "selection.own-not-finite", ["inf", "expert 1"]),
        (lambda block: block["no_such_sum"], "statistics.missing", ["no_such_sum"]),
        (lambda block: 1 / 0, "selection.own-raises", ["ZeroDivisionError", "layers.0.mlp"]),
        (lambda: [1], "selection.own-raises", ["TypeError"]),
        ("repa", "selection.criterion", ["reap"]),
        (["reap"], "selection.criterion", ["['reap']"]),
    ],
)
def test_what_cannot_be_ranked_is_one_clear_error(criterion: object, code: str, words: list[str]) -> None:
    with raises(code, *words):
        select(observed([1, 0, 2]), criterion, keep=1)  # type: ignore[arg-type]


def test_a_function_cannot_change_the_statistics() -> None:
    def spoils(block: ObservedBlock) -> torch.Tensor:
        return block["count"].zero_()

    statistics = observed([5, 1, 7])
    select(statistics, spoils, keep=1)
    assert kept(select(statistics, "frequency", keep=1)) == [2]


def test_a_block_says_what_was_observed(model: object, tokenizer: object) -> None:
    batch = tokenizer(["Sort these words: tiger maple fable"], return_tensors="pt")  # type: ignore[operator]
    statistics: ExpertStatistics = toolkit.calibrate(model, [batch], channels=True)  # type: ignore[arg-type]
    block = ObservedBlock(statistics, statistics.blocks[0])
    assert {"count", "gated_norm_sum", "aimer", "channel_energy"} <= set(block.observed)
    assert all(len(block[name]) == block.experts == 8 for name in block.observed)
    reads = {name for rule in CRITERIA.values() for name in getattr(rule, "reads", ())}
    assert reads <= set(block.observed)
    assert "count" in block._repr_html_() and "channel_energy" not in block._repr_html_()
