"""What a first task lost when its model grew for a second one (evaluation/recovered.first_task.json).

    {"task": "playground/sorting", "onto": "runs/sorting/recovered", "split": "test", "before": {"score": 0.982, …},
     "after": {"score": 0.97, …}, "pair": {"first": "grown", "second": "before", …}, "tokens": 15321,
     "choosing": {"model.layers.0.mlp": 4120, …}}

Where the first task's data cannot be read: {"task": …, "onto": …, "missing": "why"}.
"""

from pydantic import Field

from toolkit.report.measurements import Facts, Interval, Number
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import percent


class FirstTaskScore(Facts):
    """Of one model on the first task's questions."""

    score: Number
    correct: int
    n: int
    interval: Interval


class FirstTaskPair(PairedComparison[str]):
    """The grown and trained model (first) against the one that it grew onto (second)."""


class FirstTaskFacts(Facts):
    """`tokens` of the questions with their gold answers; `choosing`: by block those that chose a new expert."""

    task: str
    onto: str
    missing: str | None = None
    split: str | None = None
    before: FirstTaskScore | None = None
    after: FirstTaskScore | None = None
    pair: FirstTaskPair | None = None
    tokens: int = 0
    choosing: dict[str, int] = Field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Of the tokens, by block."""
        return {name: count / self.tokens for name, count in self.choosing.items()} if self.tokens else {}

    @property
    def sentence(self) -> str:
        """ "31.2 % of its tokens chose a new expert, on average over 4 blocks (12.0 % to 55.3 %)." """
        shares = list(self.shares.values())
        if not shares:
            return ""
        mean = percent(sum(shares) / len(shares))
        spread = f", on average over {len(shares)} blocks ({percent(min(shares))} to {percent(max(shares))})"
        return f"{mean} of its tokens chose a new expert{spread if len(shares) > 1 else ''}."


def first_task_warnings(facts: FirstTaskFacts | None) -> list[str]:
    """What is not known of it."""
    if facts is None or facts.missing is None:
        return []
    return [f"What growing cost the first task, {facts.task}, was not measured: {facts.missing}"]
