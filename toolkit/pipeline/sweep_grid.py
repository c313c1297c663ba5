"""Which cells a sweep has: comma lists among the overrides.

pollard sweep recipes/playground.yaml pruning.keep=8,6,4,2 pruning.criterion=random,frequency,reap seed=0,1,2
pollard sweep recipes/playground.yaml pruning.keep=null,4 pruning.width=null,0.5 "pruning.layers=3,[0,1]"
pollard sweep recipes/playground.yaml pruning.keep=null,6,4 sweep.compression=null,low_rank:0.5,2:4
pollard sweep recipes/playground.yaml pruning.keep=4,2 sweep.allocation=measured
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from toolkit.recipe.file import dump_value, load_recipe
from toolkit.recipe.pruning import BELONGING, PruningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError

# A label need not repeat the first, which has a column of its own, and begins with the others
COMPRESSION, ALLOCATION = "sweep.compression", "sweep.allocation"
AXES = ("pruning.keep", "pruning.criterion", "pruning.width_criterion", "pruning.layer_criterion", COMPRESSION, ALLOCATION)
CUTS = ("pruning.keep", "pruning.width", "pruning.layers", COMPRESSION)
MEASURED = "measured allocation"
COMMA = re.compile(r",(?![^\[{]*[\]}])")  # not inside of a list


@dataclass(frozen=True)
class Cell:
    """One way to prune. `recipe` has the pruning; `seed` is what `random` draws with (the calibration's is the recipe's).

    `label` names the line that the cell belongs to: the criteria of what it cuts, and what else of pruning is swept but `keep`.
    """

    recipe: Recipe
    seed: int
    label: str

    @property
    def compression(self) -> str | None:
        return self.recipe.sweep.compression

    @property
    def allocated(self) -> bool:
        """Whether blocks keep numbers of experts of their own."""
        return self.recipe.sweep.allocation == "measured"


@dataclass(frozen=True)
class Grid:
    """`recipe` is the recipe itself, with every override that is no list. `left_out`: combinations that are no cells."""

    recipe: Recipe
    cells: list[Cell]
    left_out: int = 0


def load_grid(path: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """The recipe and its cells; lists may be given for `seed`, every `pruning.` key, `sweep.compression` (one value of which is
    a list, too) and `sweep.allocation`.

    Only `random` looks at the seed, so only it has a cell for each. What cuts nothing is the original, which every sweep has.
    Compression goes with fewer experts; together with other cuts, or with a measured allocation, it is left out. A cell with a
    measured allocation stands beside its uniform one. Raises PollardError as `load_recipe` does, and where there is nothing to
    compare.
    """
    fixed: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for override in overrides:  # of one key, what is said last holds
        key, _, value = override.partition("=")
        fixed.pop(key, None)
        lists.pop(key, None)
        listed = key in ("seed", COMPRESSION, ALLOCATION) or key.startswith("pruning.")
        options = COMMA.split(value) if listed else [value]
        if len(options) > 1 and not all(options):
            raise PollardError(
                f"`{override}` has nothing between two commas: say what to compare, e.g. "
                f"{key}={','.join(filter(None, options))}.",
                code="sweep.empty-value",
            )
        if key == ALLOCATION and "measured" in options:
            options = list(dict.fromkeys(["uniform", *options]))
        if len(options) > 1 or key == COMPRESSION:
            lists[key] = options
        else:
            fixed[key] = override
    recipe = load_recipe(path, list(fixed.values()))
    if recipe.sweep.allocation == "measured":  # in the recipe's file
        lists.setdefault(ALLOCATION, ["uniform", "measured"])
        recipe = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"allocation": "uniform"})})
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
    if recipe.pruning.fit or any(key.startswith("pruning.fit") for key in lists):
        raise PollardError(
            "A sweep compares what you list, and a fit finds the shape itself: say pruning.fit=null and what to compare, or "
            "`pollard fit`, which measures shapes beside each other.",
            code="sweep.fit",
        )
    if recipe.pruning.grow or any(key.startswith("pruning.grow") for key in lists):
        raise PollardError(
            "A sweep masks the original, and what grows holds another run's trained weights: say pruning.grow=null and what to "
            "compare. Compare grown runs with `pollard compare`.",
            code="sweep.grow",
        )
    if compared := next((key for key in lists if key.startswith("pruning.refit")), None):
        raise PollardError(
            f"A sweep masks the original, and a refit changes weights: {compared} makes no difference there. Compare runs that "
            "are refit and runs that are not (`pollard compare`).",
            code="sweep.refit",
        )
    if recipe.pruning.form == "dense" or "pruning.form" in lists:
        raise PollardError(
            "A sweep masks the original and lets its routers choose, and the dense form has none: say pruning.form=moe, and run "
            "the best cell with pruning.form=dense.",
            code="sweep.dense",
        )
    seeds = [load_recipe(path, [*fixed.values(), f"seed={seed}"]).seed for seed in lists.pop("seed", [str(recipe.seed)])]
    if not lists.keys().isdisjoint(CUTS[1:]) and "pruning.keep" not in lists and not _says_keep(recipe):
        fixed["pruning.keep"] = "pruning.keep=null"  # also where a cell leaves out the other cuts
    cells, left_out = [], 0
    for values in product(*lists.values()):
        chosen = _with_defaults(dict(zip(lists, values, strict=True)))
        varied = _without_refit(load_recipe(path, [*fixed.values(), *(f"{key}={value}" for key, value in chosen.items())]))
        criteria, compression = varied.pruning.criteria, varied.sweep.compression
        allocated = varied.sweep.allocation == "measured"
        if allocated and varied.pruning.keep is None:  # all experts stay
            continue
        if compression and (allocated or varied.pruning.width is not None or varied.pruning.layers is not None):
            left_out += 1
            continue
        others = [f"{key.removeprefix('pruning.')} {value}" for key, value in chosen.items() if key not in AXES]
        swept = [other for other in others if not other.endswith(" null")]
        label = ", ".join(filter(None, [" + ".join(criteria), *swept, compression, MEASURED * allocated]))
        drawn = seeds if "random" in criteria else [recipe.seed]
        cells += [Cell(varied, seed, label) for seed in drawn if criteria or varied.pruning.layers or compression]
    each = {(cell.recipe.pruning.model_dump_json(), cell.compression, cell.allocated, cell.seed): cell for cell in cells}
    return Grid(recipe, list(each.values()), left_out)


def _without_refit(recipe: Recipe) -> Recipe:
    """A cell is the original, masked: no checkpoint is written that could be refit."""
    return recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"refit": False})})


def _with_defaults(chosen: dict[str, str]) -> dict[str, str]:
    """In a cell that does not cut something, how it would be cut is not to be chosen."""
    fields = PruningRecipe.model_fields
    for cut, keys in BELONGING.items():
        if chosen.get(f"pruning.{cut}") == "null":
            chosen |= {f"pruning.{key}": dump_value(fields[key].default) for key in keys}
    return chosen


def _says_keep(recipe: Recipe) -> bool:
    return "keep" in recipe.pruning.model_fields_set and recipe.pruning.keep is not None
