"""Laws of the compared searches: a choice is a shape within the limit, nothing is better than the exhaustive one, the program
finds the best sum, a search asks for as many shapes as it says, and a seed decides its draws."""

import random
import sys
from itertools import product

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fit_searches
from fit_searches import SEARCHES, SEEDED, Grid, Scores

from toolkit.cuts.fit_result import FitShape, ShapeRecord
from toolkit.cuts.size_table import FitSize
from toolkit.selection.fit import AxisValues, Deltas, Limit, shapes_within, to_measure

VALUES = AxisValues([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], list(range(8, 65, 8)), [2])
ORIGINAL = VALUES.original


def size_of(shape: FitShape) -> FitSize:
    number = 300 + shape.layers * (50 + shape.experts * (5 + 3 * shape.width))
    return FitSize(number, number, 4 * number)


def made_up_grid(seed: int, part: int = 3) -> tuple[Grid, dict[FitShape, float]]:
    """With deltas that grow as more is cut, roughly; and scores that are their sum, and what no sum says."""
    draw = random.Random(seed)
    limit = size_of(ORIGINAL).bytes // part
    counts = {"layers": VALUES.layers, "experts": VALUES.experts, "width": VALUES.width}
    axes = {axis: {value: draw.random() * (max(values) - value) / max(values) for value in values}
            for axis, values in counts.items()}  # fmt: skip
    deltas = Deltas(axes)
    shapes = [FitShape(layers, experts, width, min(2, experts)) for layers, experts, width in product(*counts.values())]
    found = shapes_within(VALUES, size_of, [Limit("bytes", limit, lambda _, sizes: sizes.bytes)])
    candidates = [
        ShapeRecord.model_validate(
            each.shape._asdict()
            | each.size._asdict()
            | {"single_cut": each.single_cut, "predicted": deltas.predicted(each.shape)}
        )
        for each in found
    ]
    grid = Grid(ORIGINAL, limit, {shape: size_of(shape).bytes for shape in shapes}, deltas, candidates)
    return grid, {shape: deltas.predicted(shape) + draw.random() for shape in shapes}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_choice_is_within_the_limit_and_no_better_than_the_best(name: str) -> None:
    for seed, part in product(range(3), (2, 3, 4)):
        grid, scores = made_up_grid(seed, part)
        asked = Scores(scores)
        choice = SEARCHES[name](grid, asked, seed)
        assert size_of(choice).bytes <= grid.limit and choice in grid.within
        assert scores[choice] >= min(scores[shape] for shape in grid.within)
        assert all(size_of(shape).bytes <= grid.limit for shape in asked.asked)
        assert not asked.asked or scores[choice] == min(asked.asked.values())


@pytest.mark.parametrize("name", SEARCHES)
def test_the_seed_decides_the_draws_of_those_that_draw(name: str) -> None:
    grid, scores = made_up_grid(0)

    def asked_for(seed: int) -> list[FitShape]:
        asked = Scores(scores)
        SEARCHES[name](grid, asked, seed)
        return list(asked.asked)

    assert asked_for(1) == asked_for(1)
    assert (asked_for(1) != asked_for(2)) == (name in SEEDED)


def test_a_search_asks_for_as_many_shapes_as_it_says() -> None:
    grid, scores = made_up_grid(1)

    def measured(name: str) -> int:
        asked = Scores(scores)
        SEARCHES[name](grid, asked, 3)
        return len(asked.asked)

    by_fit = len(to_measure(grid.candidates, 8))
    assert 8 <= by_fit <= 11 and measured("fit") == by_fit and measured("exhaustive") == len(grid.within) > 64
    assert measured("Puzzle: additive, mixed-integer program") == measured("MoE-I²: 1 / importance") == 0
    assert measured("Minitron: the ten largest") == 10
    assert {measured(name) for name in SEEDED} == {by_fit}


def test_the_exhaustive_search_finds_the_best() -> None:
    grid, scores = made_up_grid(2)
    assert scores[fit_searches.exhaustive(grid, Scores(scores))] == min(scores[shape] for shape in grid.within)


def test_fit_loses_nothing_where_the_sum_is_right() -> None:
    grid, _ = made_up_grid(3)
    sums = {shape: grid.deltas.predicted(shape) for shape in grid.sizes}
    best = min(sums[record.shape] for record in grid.candidates)
    assert sums[fit_searches.fit(grid, Scores(sums))] == best


@pytest.mark.parametrize("part", [2, 3, 4])
def test_the_program_finds_the_best_sum(part: int) -> None:
    for seed in range(4):
        grid, scores = made_up_grid(seed, part)
        choice = fit_searches.additive_program(grid, Scores(scores))
        assert grid.deltas.predicted(choice) == pytest.approx(min(map(grid.deltas.predicted, grid.within)), abs=1e-7)


def test_the_program_takes_no_value_whose_delta_is_infinite() -> None:
    grid, scores = made_up_grid(0)
    axes = {axis: dict(points) for axis, points in grid.deltas.axes.items()}
    axes["layers"] |= {1: float("inf"), 2: float("inf")}
    without = Grid(grid.original, grid.limit, grid.sizes, Deltas(axes), grid.candidates)
    assert fit_searches.additive_program(without, Scores(scores)).layers > 2
    axes["layers"] = dict.fromkeys(VALUES.layers, float("inf"))
    with pytest.raises(ValueError, match="finite deltas"):
        fit_searches.additive_program(without, Scores(scores))


def test_what_matters_least_is_cut_most_by_the_rule_of_importance() -> None:
    grid, scores = made_up_grid(0)
    for cheap, others in {"experts": ("layers", "width"), "width": ("layers", "experts"), "layers": ("experts", "width")}.items():
        axes = {axis: {value: 0.0 if value == max(points) else (0.01 if axis == cheap else 1.0) for value in points}
                for axis, points in grid.deltas.axes.items()}  # fmt: skip
        rule = Grid(grid.original, grid.limit, grid.sizes, Deltas(axes), grid.candidates)
        kept = {
            axis: getattr(fit_searches.inverse_importance(rule, Scores(scores)), axis) / getattr(ORIGINAL, axis)
            for axis in (cheap, *others)
        }
        assert kept[cheap] <= 0.5 and kept[cheap] < min(kept[axis] for axis in others)


def test_a_level_switch_is_one_step_up_and_one_down() -> None:
    grid, _ = made_up_grid(0)
    draw, begin = random.Random(0), grid.widest[2, 4]
    moves = {fit_searches._switched(grid, begin, draw) for _ in range(200)} - {None}
    steps = {(shape.layers - 2, shape.experts - 4) for shape in moves if shape}
    assert steps == {(1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1)}
    assert all(shape in grid.widest.values() for shape in moves)
