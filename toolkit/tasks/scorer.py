"""What a scorer is: two readings of an answer, one that demands the format and one that looks for what was meant.

answer "So she has 72 clips."    gold "… #### 72"      strict: no, there is no ####    flexible: yes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.tasks.readings import MARK, answer_part, declares_mark, gold_part

Judge = Callable[[str, str], bool]  # prediction, gold
QUOTED = 200  # characters of an answer, in a message


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

    def gold_faults(self, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        """For each completion and gold answer why nothing could be judged by it; None where the gold answer is right itself."""
        verdicts = self.verdicts([(gold, gold) for _, gold in pairs])
        return [self._gold_fault(gold, verdict) for (_, gold), verdict in zip(pairs, verdicts, strict=True)]

    def _gold_fault(self, gold: str, verdict: Verdict) -> str | None:
        if verdict.error or verdict.note:
            return f"fails on the answer {quoted(gold)} itself: {verdict.error or verdict.note}"
        if not gold_part(gold) or not verdict.strict:
            return f"finds nothing to compare with in the answer {quoted(gold)}"
        return None

    def as_gold(self, prediction: str, gold: str) -> str:
        """What a prediction answers, as a gold answer in the format of `gold`: two predictions agree where one is right by
        the other."""
        part = answer_part(prediction, gold) if declares_mark(gold) else ""
        return f"{MARK} {part}" if part else prediction


def quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED // 2]} … {text[-QUOTED // 2 :]}")
