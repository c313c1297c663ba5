"""Searches for the best shape under a limit, on one table of measured scores: `fit`'s, and those of four papers, written from
their descriptions.

    fit                      the 8 shapes with the smallest sum of deltas and the best single cuts are measured
    exhaustive               every shape is
    random                   as many as fit measures, drawn
    additive_program         Puzzle (arXiv 2411.19146): scores of replacing one block at a time are added up, and a mixed-integer
                             program finds the best sum within the limits. Nothing is measured jointly
    largest_first            Minitron (2408.11796): of the shapes sorted by size, those nearest to the limit get a zero-shot score
    inverse_importance       MoE-I² (2411.01016): layers are pruned in proportion to 1 / importance. Nothing is measured jointly
    genetic                  MoE-I², too: a population, whose better half are parents, is crossed and mutated
    level_switches           EvoESAP (2603.06003): elites are mutated by transfers that keep the budget: a level down, one up

The papers search a number for every layer or block; a stock checkpoint has one number of layers, of experts, and one width.
Adapted is therefore: what they do per layer is done per axis. A block's score is an axis's delta; importance is what an axis
costs at a half; genes are the three counts, and as an expert given to one layer is taken from another, one count goes up a step
as another goes down. Where a count is free to follow, it is the width: the greatest that meets the limit. The score is the
table's for all of them (instead of the papers' perplexity, output differences or acceptance), and genetic searches end after as
many measurements as fit has, so that they can be compared.
"""

import math
import random as randomness
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from toolkit.cuts.fit_result import FitShape, ShapeRecord
from toolkit.selection.fit import Deltas, to_measure

MEASURED_BY_FIT = 8  # pruning.fit.measured
LARGEST = 10
POPULATION, PARENTS = 6, 3
MUTATED = 0.3  # of a child's counts
MOST_ATTEMPTS = 10_000  # a search that finds no shape it has not measured ends
LEAST_IMPORTANCE = 1e-6  # nats: of a cut that costs nothing, or less
COUNTS = ("layers", "experts", "width")


@dataclass(frozen=True)
class Grid:
    """What there is to search under one limit. `sizes`: bytes of all shapes of the table, larger ones too; `candidates`: what a
    fit looks at."""

    original: FitShape
    limit: int
    sizes: Mapping[FitShape, int]
    deltas: Deltas
    candidates: Sequence[ShapeRecord]

    @cached_property
    def within(self) -> list[FitShape]:
        """In the order of their counts."""
        return sorted(shape for shape, size in self.sizes.items() if size <= self.limit)

    @cached_property
    def widest(self) -> Mapping[tuple[int, int], FitShape]:
        """Of every number of layers and experts, the shape with the greatest width: what is worth searching."""
        return {shape[:2]: shape for shape in self.within}

    def nearest(self, counts: Sequence[int]) -> FitShape:
        """Of these, the one nearest to `counts`, by the ratios of counts."""
        return min(
            self.widest.values(), key=lambda shape: sum(abs(math.log(a / b)) for a, b in zip(shape[:3], counts, strict=True))
        )


class Scores:
    """What measuring shapes says, less is better; counts what was asked for."""

    def __init__(self, scores: Mapping[FitShape, float]) -> None:
        self._scores, self.asked = scores, dict[FitShape, float]()

    def __call__(self, shape: FitShape) -> float:
        self.asked[shape] = self._scores[shape]
        return self.asked[shape]

    @property
    def best(self) -> FitShape:
        """Of those that were asked for."""
        return min(self.asked, key=lambda shape: (self.asked[shape], shape))


Search = Callable[[Grid, Scores, int], FitShape]
"""A grid, what can be asked, a seed -> the choice."""


def exhaustive(grid: Grid, scores: Scores, seed: int = 0) -> FitShape:
    return _best_of(grid.within, scores)


def fit(grid: Grid, scores: Scores, seed: int = 0) -> FitShape:
    """Through the toolkit's own ranking."""
    return _best_of([grid.candidates[place].shape for place in to_measure(grid.candidates, MEASURED_BY_FIT)], scores)


def random(grid: Grid, scores: Scores, seed: int) -> FitShape:
    shapes = list(grid.widest.values())
    return _best_of(randomness.Random(seed).sample(shapes, min(_as_many_as_fit(grid), len(shapes))), scores)


def additive_program(grid: Grid, scores: Scores, seed: int = 0) -> FitShape:
    """Binary variables: one per shape, of which one is taken, and one per value of every axis, whose deltas are added up. A value
    is taken exactly where a shape with it is; the bytes of the shape that is taken are at most the limit."""
    shapes, axes = list(grid.sizes), grid.deltas.axes
    values = [(axis, value) for axis in axes for value in sorted({getattr(shape, axis) for shape in shapes})]
    deltas = [Deltas({axis: axes[axis]}).predicted(grid.original._replace(**{axis: value})) for axis, value in values]
    links = np.array([[float(getattr(shape, axis) == value) for shape in shapes] for axis, value in values])
    one = [1.0] * len(shapes) + [0.0] * len(values)
    sizes = [float(grid.sizes[shape]) for shape in shapes] + [0.0] * len(values)
    found = milp(
        c=[0.0] * len(shapes) + [delta if math.isfinite(delta) else 0.0 for delta in deltas],
        constraints=[
            LinearConstraint(np.array([one]), 1, 1),
            LinearConstraint(np.array([sizes]) / 1000, -np.inf, grid.limit / 1000),  # exact to a byte within the solver's 1e-6
            LinearConstraint(np.hstack([links, -np.eye(len(values))]), 0, 0),
        ],
        bounds=Bounds(0, [1.0] * len(shapes) + [float(math.isfinite(delta)) for delta in deltas]),
        integrality=np.ones(len(shapes) + len(values)),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"no shape of at most {grid.limit:,} bytes has finite deltas: {found.message}")
    return shapes[int(np.argmax(found.x[: len(shapes)]))]


def largest_first(grid: Grid, scores: Scores, seed: int = 0) -> FitShape:
    by_size = sorted(grid.widest.values(), key=lambda shape: (-grid.sizes[shape], shape))
    return _best_of(by_size[:LARGEST], scores)


def inverse_importance(grid: Grid, scores: Scores, seed: int = 0) -> FitShape:
    """The shape whose cuts, as logarithms of what stays of each count, point most nearly where 1 / importance does."""
    rule = np.array([1 / max(_cost_of_a_half(grid, axis), LEAST_IMPORTANCE) for axis in COUNTS])

    def alignment(shape: FitShape) -> float:
        cuts = np.array([math.log(getattr(grid.original, axis) / getattr(shape, axis)) for axis in COUNTS])
        return float(cuts @ rule / (np.linalg.norm(cuts) * np.linalg.norm(rule)))

    cut = [shape for shape in grid.widest.values() if shape[:3] != grid.original[:3]]
    return max(cut, key=lambda shape: (alignment(shape), shape))


def genetic(grid: Grid, scores: Scores, seed: int) -> FitShape:
    """A child takes each count from one of two parents, some at random; of the population the worst dies for it."""
    draw, most = randomness.Random(seed), min(_as_many_as_fit(grid), len(grid.widest))
    population = draw.sample(list(grid.widest.values()), min(POPULATION, most))
    _best_of(population, scores)
    values = [sorted({getattr(shape, axis) for shape in grid.widest.values()}) for axis in COUNTS]
    for _ in range(MOST_ATTEMPTS):
        if len(scores.asked) >= most:
            break
        population.sort(key=lambda shape: (scores.asked[shape], shape))
        parents = [draw.choice(population[:PARENTS])[:3] for _ in range(2)]
        genes = [draw.choice(pair) for pair in zip(*parents, strict=True)]
        child = grid.nearest([draw.choice(values[at]) if draw.random() < MUTATED else gene for at, gene in enumerate(genes)])
        if child not in population:
            scores(child)
            population = [*population[: POPULATION - 1], child]
    return scores.best


def level_switches(grid: Grid, scores: Scores, seed: int) -> FitShape:
    """Begins with the shape that cuts all counts most evenly, as the paper does with the uniform allocation."""
    draw, most = randomness.Random(seed), min(_as_many_as_fit(grid), len(grid.widest))
    scores(min(grid.widest.values(), key=lambda shape: (_unevenness(grid, shape), shape)))
    for _ in range(MOST_ATTEMPTS):
        if len(scores.asked) >= most:
            break
        elites = sorted(scores.asked, key=lambda shape: (scores.asked[shape], shape))[:PARENTS]
        if child := _switched(grid, draw.choice(elites), draw):
            scores(child)
    return scores.best


SEARCHES: Mapping[str, Search] = {
    "exhaustive": exhaustive,
    "fit": fit,
    "Puzzle: additive, mixed-integer program": additive_program,
    "Minitron: the ten largest": largest_first,
    "MoE-I²: 1 / importance": inverse_importance,
    "MoE-I²: genetic": genetic,
    "EvoESAP: level switches": level_switches,
    "random": random,
}
SEEDED = ("MoE-I²: genetic", "EvoESAP: level switches", "random")
"""Those whose choice depends on the seed."""


def _best_of(shapes: Sequence[FitShape], scores: Scores) -> FitShape:
    for shape in shapes:
        scores(shape)
    return scores.best


def _as_many_as_fit(grid: Grid) -> int:
    return len(to_measure(grid.candidates, MEASURED_BY_FIT))


def _cost_of_a_half(grid: Grid, axis: str) -> float:
    half = max(1, getattr(grid.original, axis) // 2)
    deltas = Deltas({axis: grid.deltas.axes[axis]}) if axis in grid.deltas.axes else Deltas({})
    return deltas.predicted(grid.original._replace(**{axis: half}))


def _unevenness(grid: Grid, shape: FitShape) -> float:
    cuts = [math.log(getattr(grid.original, axis) / getattr(shape, axis)) for axis in COUNTS]
    return max(cuts) - min(cuts)


def _switched(grid: Grid, shape: FitShape, draw: randomness.Random) -> FitShape | None:
    """One count a step up and another a step down; the width follows. None where there is no such shape."""
    up, down = draw.sample(range(3), 2)
    layers, experts = (count + (at == up) - (at == down) for at, count in enumerate(shape[:2]))
    return grid.widest.get((layers, experts))
