"""What `pollard compare` shows: any two models of any two runs, on the same questions.

{"format": 1, "task": "gsm8k", "split": "test", "first": {"name": "runs/math/recovered", …}, "second": …, "both": 497, …}
"""

from typing import Any, Literal

from toolkit.report.measurements import Facts, Interval, Number
from toolkit.report.noninferiority import NonInferiority
from toolkit.report.paired import PairedComparison


class ComparedModel(Facts):
    """One side of `pollard compare`; `name` is its path."""

    name: str
    score: Number
    correct: int
    n: int
    interval: Interval


class ModelPair(PairedComparison[ComparedModel]):
    """Any two models of any two runs."""


class ModelComparison(Facts):
    """What `pollard compare` shows; `verdict` is `pair` in words. `noninferiority`: where a margin was named."""

    format: Literal[1] = 1
    task: str | None
    split: str | None
    pair: ModelPair
    verdict: str
    noninferiority: NonInferiority | None = None

    def as_json(self) -> dict[str, Any]:
        """One flat object, as `pollard compare --json` prints it."""
        about = self.model_dump(mode="json", exclude={"pair", "verdict", "noninferiority"})
        more = {"noninferiority": self.noninferiority.as_json()} if self.noninferiority else {}
        return about | self.pair.as_json() | {"verdict": self.verdict} | more
