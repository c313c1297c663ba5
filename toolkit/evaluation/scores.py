"""What an evaluation leaves: a score that carries its n and its interval, and one line per item."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import ItemsFailed
from toolkit.runtime.files import write_text
from toolkit.runtime.intervals import wilson


@dataclass(frozen=True)
class Item:
    """One answered test item; `tokens` counts what was generated, `ended` says that the model stopped by itself.

    `correct` is the verdict by strict extraction, `flexible` by flexible extraction; `error` is what the scorer raised, `note`
    why a comparison was given up and counts as wrong, `credit` a degree of rightness (of F1 and of own scorers), and `likeliest`
    whether the model finds the right one of the item's choices the likeliest.
    """

    index: int
    prompt: str
    gold: str
    prediction: str
    correct: bool
    tokens: int
    ended: bool
    flexible: bool = False
    error: str | None = None
    note: str | None = None
    credit: float | None = None
    likeliest: bool | None = None
    written: str | None = None  # all that the model wrote, where that is more than the prediction
    samples: list[dict[str, Any]] = field(default_factory=list)  # where there was a vote: every answer that had one


@dataclass
class Scores:
    """A model's result on a split. `score` and `interval` are fractions, by strict extraction; speed is generated tokens per
    second, all ranks together; peak memory is the largest of any rank (GPU memory on a GPU, else resident memory of the
    process)."""

    items: list[Item] = field(repr=False)
    about: dict[str, Any]

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def correct(self) -> int:
        return sum(item.correct for item in self.items)

    @property
    def score(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def flexible_correct(self) -> int:
        return sum(item.flexible for item in self.items)

    @property
    def flexible_score(self) -> float:
        return self.flexible_correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    @property
    def credit(self) -> float | None:
        """The mean of the items' credits; None where the scorer gives none."""
        credits = [item.credit for item in self.items if item.credit is not None]
        return math.fsum(credits) / len(credits) if credits else None

    @property
    def likelihood_score(self) -> float | None:
        """Of the items with choices, how many of whose right ones are the likeliest; None where none has any."""
        return sum(self._weighed) / len(self._weighed) if self._weighed else None

    @property
    def _weighed(self) -> list[bool]:
        return [item.likeliest for item in self.items if item.likeliest is not None]

    @property
    def told_beside(self) -> str:
        """The other measures, where there are any, for the terminal."""
        beside = {"by the likeliest choice": self.likelihood_score, "mean credit": self.credit}
        return "".join(f", {value:.1%} {name}" for name, value in beside.items() if value is not None)

    @property
    def failed(self) -> list[Item]:
        """Those whose scorer raised: no score is one before it is mended."""
        return [item for item in self.items if item.error]

    def check(self) -> None:
        """Raises ItemsFailed where there is an item that the scorer could not judge."""
        failed = self.failed
        if failed:
            more = f" (and {len(failed) - 1:,} more)" if failed[1:] else ""
            raise ItemsFailed(
                f"The scorer of task {self.about.get('task')} could not judge {len(failed):,} of {self.n:,} answers: "
                f"{failed[0].error}{more}. The others are judged; mend the scorer, and the same command goes on.",
                [item.index for item in failed],
            )

    def save(self, folder: str | Path, role: str) -> None:
        """Writes <role>.predictions.jsonl, then <role>.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{role}.predictions.jsonl", "".join(json.dumps(asdict(item)) + "\n" for item in self.items))
        summary = {
            "score": self.score,
            "correct": self.correct,
            "n": self.n,
            "interval": list(self.interval),
            "flexible_score": self.flexible_score,
            "flexible_correct": self.flexible_correct,
            "generated_tokens": sum(item.tokens for item in self.items),
            "truncated": sum(not item.ended for item in self.items),
            "empty": sum(not item.prediction.strip() for item in self.items),
            "unfinished_reasoning": sum(not item.prediction.strip() and bool(item.written) for item in self.items),
            "failed": len(self.failed),
            "given_up": sum(item.note is not None for item in self.items),
        }
        if self.credit is not None:
            summary["credit"] = self.credit
        if self.likelihood_score is not None:
            summary |= {"likelihood_score": self.likelihood_score, "likelihood_correct": sum(self._weighed)}
        write_text(folder / f"{role}.json", json.dumps(summary | self.about, indent=1) + "\n")
