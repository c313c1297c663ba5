"""The key `pruning.refit` (a part of toolkit/recipe/pruning.py): whether what stays is fitted to the original, layer by layer.

pruning: {keep: 4, refit: true}                 on as many training examples as calibration reads
pruning: {keep: 4, refit: {examples: 2048}}     on so many
"""

from typing import Any

from pydantic import Field

from toolkit.recipe.data import Section


class RefitRecipe(Section):
    """Settings of refit. `true` is short for the defaults."""

    examples: int | None = Field(default=None, ge=1, strict=True)
    """Number of training examples that are read, from the sources of the calibration. Default: as many as calibration reads."""


def check_refit(value: Any) -> Any:
    """`true`, `false`, or the keys. Raises ValueError for anything else, and with the faults of the keys: reported as such, and
    not as those of one of several types that a value might have."""
    if isinstance(value, RefitRecipe):
        return value
    if isinstance(value, dict) and value:
        return RefitRecipe.model_validate(value)
    if not isinstance(value, bool):
        raise ValueError("refit is true, false, or the number of training examples to read: {examples: 1024}")
    return value
