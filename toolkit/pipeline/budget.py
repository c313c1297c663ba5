"""What the numbers of `pruning` mean for a model: counts of experts, channels and layers.

Fractions, and numbers in the steps of a schedule, are of the original, in rounds after the first, too.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedModel

from toolkit.cuts import ModelShape, Plan, without_last
from toolkit.moe import check_prunable, expert_width, find_blocks, layers_of
from toolkit.recipe.pruning import PruningRecipe
from toolkit.runtime.errors import PollardError
from toolkit.selection import channels_to_keep, experts_to_activate, experts_to_keep, layers_to_keep, width_multiple

COUNTING_KEYS = {"keep", "width", "width_multiple", "layers", "experts_per_token", "grow"}
"""The keys of `pruning` that decide it."""


class Budget(NamedTuple):
    """What stays of the model."""

    keep: int  # experts per block
    experts_per_token: int
    fewer_active: bool  # experts per token than in the model that is pruned
    width: int | None = None  # channels per expert; None: as many as there are
    layers: int | tuple[int, ...] | None = None  # how many, or which; None: all
    depth: int = 0  # how many layers there are

    @property
    def layer_count(self) -> int | None:
        return len(self.layers) if isinstance(self.layers, tuple) else self.layers

    @property
    def shape(self) -> ModelShape:
        """For counting on a model without weights; where it is not chosen yet which layers stay, the last ones before the final
        one are taken out."""
        layers = without_last(self.layers, self.depth) if isinstance(self.layers, int) else self.layers
        return ModelShape(layers=layers, experts=self.keep, width=self.width, experts_per_token=self.experts_per_token)

    def after(self, before: "Budget") -> "Budget":
        """What a round cuts of a model that the round before has left with the budget `before`."""
        return self._replace(
            fewer_active=self.experts_per_token < before.experts_per_token,
            width=None if self.width == before.width else self.width,
            layers=None if self.layers == before.layers else self.layers,
            depth=before.layer_count or self.depth,
        )


def budget_of(model: PreTrainedModel, pruning: PruningRecipe, first: Plan | None = None) -> Budget:
    """`model`: the original, which may be without weights. `first`: the plan of what grows. Raises PollardError where it cannot
    do what the recipe asks."""
    if pruning.keep is None and pruning.width is None and pruning.layers is None:
        raise PollardError(
            "pruning.keep, pruning.width and pruning.layers are all null: nothing would be pruned. Say how much stays, e.g. "
            "pruning.keep=0.5.",
            code="recipe.nothing-to-prune",
        )
    blocks = find_blocks(model)
    now, experts = blocks[0].experts_per_token, blocks[0].expert_count
    if first and isinstance(pruning.keep, int):
        _check_growing(pruning.keep, first, experts)  # where the recipe says it, and not as pruning.keep
    kept = experts if pruning.keep is None else experts_to_keep(pruning.keep, experts, blocks[0].groups or 1)
    wanted = pruning.experts_per_token
    if first:
        _check_growing(kept, first, experts)
        wanted = wanted or first.experts_per_token
    active = experts_to_activate(wanted, kept, now)
    check_prunable(blocks, kept, active)
    width = layers = None
    if pruning.width is not None:
        width = channels_to_keep(pruning.width, there := expert_width(model), pruning.width_multiple)
        width = None if width == there else width
    depth = len(layers_of(model, blocks)[1]) if pruning.layers is not None else 0
    if pruning.layers is not None:
        found = layers_to_keep(pruning.layers, depth)
        layers = tuple(found) if isinstance(found, list) else found
        layers = None if layers in (depth, tuple(range(depth))) else layers
    return Budget(kept, active, active < now, width, layers, depth)


def _check_growing(keep: int, first: Plan, experts: int) -> None:
    """Raises PollardError unless `keep` experts are more than `first` holds, and there are as many."""
    if not first.keep < keep <= experts:
        more = f"say a number in {first.keep + 1}…{experts}" if first.keep < experts else "there are no others to add"
        raise PollardError(
            f"pruning.grow.keep is {keep}, and {first.keep} of the original's {experts} experts are there already: {more}.",
            code="grow.keep",
        )


def own_multiple(model: PreTrainedModel, pruning: PruningRecipe) -> int | None:
    """Of `pruning.width` in every round: the original's, for narrower experts have others. None where no width is cut."""
    if pruning.width is None:
        return None
    return pruning.width_multiple or width_multiple(expert_width(model))


def check_shrinking(budgets: Sequence[Budget]) -> None:
    """Raises PollardError where a step of a schedule, counted on the model, cuts nothing or brings back what is gone."""
    for number, (before, after) in enumerate(pairwise(budgets), start=2):
        counts = [(b.keep, b.width or 0, b.layer_count or 0) for b in (before, after)]
        grown = [
            key for key, old, new in zip(("keep", "width", "layers"), *counts, strict=True) if old and (new > old or not new)
        ]
        if grown or counts[0] == counts[1]:
            what = f"more ({', '.join(grown)}) than" if grown else "the same as"
            raise PollardError(
                f"Step {number} of pruning.schedule keeps {what} step {number - 1}, counted on this model "
                f"({_described(before)}; then {_described(after)}): every step keeps less than the one before.",
                code="recipe.schedule-grows",
            )


def _described(budget: Budget) -> str:
    parts = [f"{budget.keep} experts", *([f"{budget.width} channels"] if budget.width else [])]
    return ", ".join([*parts, *([f"{budget.layer_count} layers"] if budget.layer_count else [])])
