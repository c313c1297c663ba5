"""The key `pruning.grow` (a part of toolkit/recipe/pruning.py): a second task's experts behind those of a first run.

pruning: {grow: {onto: runs/sorting/recovered, keep: 6}}    the first run's experts, and the best others up to six
"""

from typing import Any

from pydantic import field_validator

from toolkit.recipe.data import Section
from toolkit.recipe.step import check_count


class GrowRecipe(Section):
    """What grows, and how far (docs/recovery.md, "A second task")."""

    onto: str
    """The folder with a checkpoint of a run that pruned the same model by experts alone: runs/sorting/recovered. Its tensors stay
    as they are."""
    keep: int | float
    """Experts per block in all, the first run's among them: a number, or a fraction of the original's."""

    @field_validator("keep", mode="before")
    @classmethod
    def _is_a_count(cls, keep: Any) -> Any:
        if keep is None:
            raise ValueError("keep says how many experts there are in the end, the first run's among them: {keep: 6}")
        return check_count("keep", keep)
