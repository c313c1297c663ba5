"""A criterion of the user's own: a function of what was observed of one block.

    def peak_per_token(block):                                          # "my_criteria:peak_per_token" in the plan
        return block["max_norm"] / block["count"].clamp(min=1)          # [E], higher stays

Shape legend: E experts of a block.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch

from toolkit.cuts.observed_block import ObservedBlock
from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.runtime.errors import PollardError
from toolkit.runtime.own_function import function_name
from toolkit.selection.criteria import ScoreCriterion

OwnScore = Callable[[ObservedBlock], torch.Tensor | Sequence[float] | npt.NDArray[Any]]


class OwnCriterion(ScoreCriterion):
    """Ties, groups and experts that no token reached as for every other score."""

    def __init__(self, function: OwnScore) -> None:
        super().__init__(self._score, reads=())
        self.function = function
        self.name = function_name(function)
        """What the plan calls it: module:function."""

    def _score(self, statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
        """Raises PollardError for what the function raises, and for anything but one finite number per expert."""
        observed = ObservedBlock(statistics, block, tokens)
        try:
            returned = self.function(observed)
        except PollardError:
            raise
        except Exception as error:
            raise PollardError(
                f"criterion {self.name} fails on block {block}: {type(error).__name__}: {error}", code="selection.own-raises"
            ) from error
        wanted = f"it must return one number per expert, [{observed.experts}]"
        try:
            scores = torch.as_tensor(returned, dtype=torch.float64).detach().cpu()  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            what = type(returned).__name__
            raise PollardError(
                f"criterion {self.name} returned {what} for block {block}: {wanted}.", code="selection.own-shape"
            ) from None
        if scores.shape != (observed.experts,):
            raise PollardError(
                f"criterion {self.name} returned the shape {list(scores.shape)} for block {block}: {wanted}.",
                code="selection.own-shape",
            )
        if bad := (~scores.isfinite()).nonzero().flatten().tolist():
            raise PollardError(
                f"criterion {self.name} returned {scores[bad[0]].item()} for expert {bad[0]} of block {block}"
                + (f" and for {len(bad) - 1} more" if bad[1:] else "")
                + ": experts are ranked by finite numbers. An expert that no token reached has a count of 0: divide by "
                'block["count"].clamp(min=1).',
                code="selection.own-not-finite",
            )
        return scores
