"""The choice in one MoE block, of which a cut of experts has one for each.

{"experts": 8, "kept": [0, 2, 5, 7], "scores": [… 8 …]}
{"experts": 8, "kept": [0, 2, 5, 7, 1], "origin": ["onto", "onto", "onto", "onto", "model"]}      where a plan grows
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Origin = Literal["onto", "model"]  # of an expert where a plan grows: the checkpoint that grows, or the original


class BlockPlan(BaseModel):
    """The choice in one MoE block: how many experts the original has, ascending indices of those kept, and every expert's score
    (if there is one). Where a plan grows: the experts in the order in which they are written, and where each comes from."""

    model_config = ConfigDict(extra="forbid")
    experts: int
    kept: list[int]
    scores: list[float] | None = None
    origin: list[Origin] | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _consistent(self) -> "BlockPlan":
        check_choice(self.experts, self.kept, self.scores, self.origin)
        return self

    @property
    def chosen(self) -> list[int]:
        """The kept experts that were chosen among all; where a plan grows, the new ones."""
        if self.origin is None:
            return self.kept
        return [expert for expert, where in zip(self.kept, self.origin, strict=True) if where == "model"]


def check_choice(
    experts: int, kept: Sequence[int], scores: Sequence[float] | None, origin: Sequence[Origin] | None = None
) -> None:
    """Raises ValueError for experts that are not there, or twice, and for lists of other lengths."""
    if origin is not None and len(origin) != len(kept):
        raise ValueError(f"origin must say of each of the {len(kept)} experts where it comes from, not of {len(origin)}")
    if not kept or sorted(set(kept)) != (sorted(kept) if origin else kept):
        raise ValueError(f"kept must be {'' if origin else 'ascending and '}without duplicates, not {kept}")
    if min(kept) < 0 or max(kept) >= experts:
        raise ValueError(f"kept names experts outside 0…{experts - 1}: {kept}")
    if scores is not None and len(scores) != experts:
        raise ValueError(f"{len(scores)} scores for {experts} experts")
