"""Which cells a sweep has: comma lists among the overrides.

pollard sweep recipes/playground.yaml pruning.keep=8,6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError

AXES = ("pruning.keep", "pruning.criterion")  # a label need not repeat them


@dataclass(frozen=True)
class Cell:
    """One way to prune. `recipe` has the pruning; `seed` is what `random` draws with (the calibration's is the recipe's).

    `label` names the line that the cell belongs to: its criterion, and what else of pruning is swept but `keep`.
    """

    recipe: Recipe
    seed: int
    label: str


@dataclass(frozen=True)
class Grid:
    """`recipe` is the recipe itself, with every override that is no list."""

    recipe: Recipe
    cells: list[Cell]


def load_grid(path: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """The recipe and its cells; lists may be given for `seed` and every `pruning.` key.

    Only `random` looks at the seed, so only it has a cell for each. Raises PollardError as `load_recipe` does, and where
    there is nothing to compare.
    """
    fixed: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for override in overrides:  # of one key, what is said last holds
        key, _, value = override.partition("=")
        fixed.pop(key, None)
        lists.pop(key, None)
        if "," in value and (key == "seed" or key.startswith("pruning.")):
            lists[key] = value.split(",")
        else:
            fixed[key] = override
    recipe = load_recipe(path, list(fixed.values()))
    if not lists:
        raise PollardError(
            "A sweep needs something to compare: e.g. pruning.keep=6,4,2 pruning.criterion=random,reap.",
            code="sweep.nothing-to-compare",
        )
    if recipe.pruning.schedule:
        raise PollardError(
            "A sweep masks the original, and a schedule prunes what rounds before have recovered: say pruning.schedule=null.",
            code="sweep.schedule",
        )
    seeds = [load_recipe(path, [*fixed.values(), f"seed={seed}"]).seed for seed in lists.pop("seed", [str(recipe.seed)])]
    cells = []
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        varied = load_recipe(path, [*fixed.values(), *(f"{key}={value}" for key, value in chosen.items())])
        others = [f"{key.removeprefix('pruning.')} {value}" for key, value in chosen.items() if key not in AXES]
        label = ", ".join([varied.pruning.criterion, *others])
        cells += [Cell(varied, seed, label) for seed in (seeds if varied.pruning.criterion == "random" else [recipe.seed])]
    return Grid(recipe, list({(cell.recipe.pruning.model_dump_json(), cell.seed): cell for cell in cells}.values()))
