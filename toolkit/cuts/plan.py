"""What stays: the file that selection leaves and pruning needs.

    {"format": 1, "model": "mistralai/Mixtral-8x7B-v0.1", "criterion": "reap", "mode": null, "tokens": "all", "seed": 0,
     "keep": 4, "experts_per_token": 2,
     "blocks": {"model.layers.0.mlp": {"experts": 8, "kept": [0, 2, 5, 7], "scores": [… 8 …]}},
     "calibration": {"task": "gsm8k", "examples": 512, "tokens": 131072, "fingerprint": "…"}}

Any tool may write one; `load` checks it.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text


class BlockPlan(BaseModel):
    """The choice in one MoE block: ascending indices of the kept experts, and every expert's score (if there is one)."""

    model_config = ConfigDict(extra="forbid")
    experts: int
    kept: list[int]
    scores: list[float] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "BlockPlan":
        if not self.kept or sorted(set(self.kept)) != self.kept:
            raise ValueError(f"kept must be ascending and without duplicates, not {self.kept}")
        if self.kept[0] < 0 or self.kept[-1] >= self.experts:
            raise ValueError(f"kept names experts outside 0…{self.experts - 1}: {self.kept}")
        if self.scores is not None and len(self.scores) != self.experts:
            raise ValueError(f"{len(self.scores)} scores for {self.experts} experts")
        return self


class Plan(BaseModel):
    """Which experts stay, per MoE block (named as in `named_modules()`), and how that was decided."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    model: str
    criterion: str
    mode: str | None = None
    tokens: str = "all"
    seed: int = 0
    keep: int
    experts_per_token: int
    blocks: dict[str, BlockPlan]
    calibration: dict[str, Any] = {}

    @model_validator(mode="after")
    def _uniform(self) -> "Plan":
        if not self.blocks:
            raise ValueError("a plan needs at least one block")
        uneven = {name: len(block.kept) for name, block in self.blocks.items() if len(block.kept) != self.keep}
        if uneven:
            raise ValueError(f"every block must keep {self.keep} experts (a checkpoint has one count for all), but: {uneven}")
        if not 1 <= self.experts_per_token <= self.keep:
            raise ValueError(f"experts_per_token must be in 1…{self.keep} (the experts kept), not {self.experts_per_token}")
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all."""
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Reads and checks a plan file; raises PollardError naming the file and every fault."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise PollardError(f"No plan at {path}: {error.strerror}.") from None
        except ValidationError as error:
            faults = "\n".join(
                f"  {'.'.join(map(str, e['loc'])) or 'as a whole'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise PollardError(f"{path} is not a valid plan:\n{faults}") from None
