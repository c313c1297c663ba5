"""What a scorer is: two readings of an answer, one that demands the format and one that looks for what was meant.

answer "So she has 72 clips."    gold "… #### 72"      strict: no, there is no ####    flexible: yes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Judge = Callable[[str, str], bool]  # prediction, gold


class Verdict(NamedTuple):
    """`error`: what the scorer raised, where it could not judge; then neither reading holds. `note`: why a comparison was
    given up and counts as wrong. `credit`: a degree of rightness from 0 to 1, of scorers that know one."""

    strict: bool
    flexible: bool
    error: str | None = None
    note: str | None = None
    credit: float | None = None


@dataclass(frozen=True)
class Scorer:
    """`flexible` accepts whatever `strict` accepts, and more."""

    strict: Judge
    flexible: Judge

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One for each prediction and gold. Whatever a scorer raises stays with the item that it could not judge."""
        return [self._verdict(*pair) for pair in pairs]

    def _verdict(self, prediction: str, gold: str) -> Verdict:
        try:
            strict = self.strict(prediction, gold)
            return Verdict(strict, strict or self.flexible(prediction, gold))
        except Exception as error:  # told with the item, and the stage fails
            return Verdict(False, False, f"{type(error).__name__}: {error}")
