"""What an evaluation leaves: a score that carries its n and its interval, and one line per item."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.files import write_text
from toolkit.proportions import wilson


@dataclass(frozen=True)
class Item:
    """One answered test item; `tokens` counts what was generated, `ended` says that the model stopped by itself."""

    index: int
    prompt: str
    gold: str
    prediction: str
    correct: bool
    tokens: int
    ended: bool


@dataclass
class Scores:
    """A model's result on a split. `score` and `interval` are fractions; speed is generated tokens per second, all ranks
    together; peak memory is the largest of any rank (GPU memory on a GPU, else resident memory of the process)."""

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
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

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
            "generated_tokens": sum(item.tokens for item in self.items),
            "truncated": sum(not item.ended for item in self.items),
            "empty": sum(not item.prediction.strip() for item in self.items),
        }
        write_text(folder / f"{role}.json", json.dumps(summary | self.about, indent=1) + "\n")
