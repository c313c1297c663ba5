"""When an expert is not worth its work: the file beside a checkpoint that says when a token skips some of its experts.

    {"format": 1, "rule": "median", "experts_per_token": 2, "tokens": 131072,
     "blocks": {"model.layers.0.mlp": 0.4494, "model.layers.1.mlp": 0.3896}}

`blocks` holds each block's threshold β (docs/skipping.md). Stock transformers does not read the file, and answers as if
it were not there.
"""

import json
import math
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolkit.errors import PollardError
from toolkit.folders import write_into

FILE = "skipping.json"


class Skipping(BaseModel):
    """The threshold of every MoE block (named as in `named_modules()`), and how it was found."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    rule: Literal["median"] | float
    experts_per_token: int = Field(ge=2)
    tokens: int = 0  # of calibration
    blocks: dict[str, float] = Field(min_length=1)

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        wrong = [f"{name}: {beta}" for name, beta in self.blocks.items() if not (math.isfinite(beta) and 0 <= beta <= 1)]
        if wrong:
            raise ValueError(f"a threshold is a ratio in 0…1, not {', '.join(wrong[:3])}")
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Beside the checkpoint's weights."""
        write_into(Path(folder), FILE, json.dumps(self.model_dump(), indent=1) + "\n")

    @classmethod
    def beside(cls, folder: str | os.PathLike[str]) -> Self | None:
        """Of the checkpoint in `folder`; None where it skips nothing. Raises PollardError for a file that cannot be followed."""
        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'as a whole'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise PollardError(
                f"{path} is damaged ({faults}). Find the thresholds again (pollard run RECIPE --fresh), or remove the file to "
                "run the model without skipping."
            ) from None
