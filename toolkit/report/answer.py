"""An answer, as reports read it: a line of evaluation/<role>.predictions.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One line of a predictions file, as far as reports read it."""

    index: int
    prompt: str
    gold: str
    prediction: str
    correct: bool
    credit: float | None = None  # where the scorer gives degrees

    @property
    def degree(self) -> float:
        return float(self.correct) if self.credit is None else self.credit
