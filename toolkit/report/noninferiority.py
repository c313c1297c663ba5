"""Whether a model is shown to be no worse than another by more than a margin: non-inferiority.

    {"first": "recovered", "second": "original", "margin": 2, "worst": -0.029, "verdict": "not shown"}

"Not significant" does not say that two models are equally good. What does: the margin is the loss that the user would accept, and
the lower end of the difference's interval must lie above it (ICH E9, 3.3.2; Piaggio et al. 2012, JAMA 308, 2594). By a two-sided
95 % interval that is a one-sided test at 2.5 %.
"""

from typing import Any, Literal

from toolkit.report.measurements import Facts, Number
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import plain_points, points


class NonInferiority(Facts):
    """`margin` is in percentage points; `worst` is the lower end of the difference's interval, a fraction. shown: the first is
    worse by less than the margin; not shown: the questions leave it open; worse: the first is worse by more than the margin."""

    first: str
    second: str
    margin: Number
    worst: Number
    verdict: Literal["shown", "not shown", "worse"]

    @classmethod
    def of(cls, pair: PairedComparison[Any], margin: float) -> "NonInferiority":
        """By the pair's interval."""
        low, high = pair.interval
        verdict: Literal["shown", "not shown", "worse"] = "not shown"
        if 100 * low > -margin:
            verdict = "shown"
        elif 100 * high < -margin:
            verdict = "worse"
        first, second = (side if isinstance(side, str) else side.name for side in (pair.first, pair.second))
        return cls(first=str(first), second=str(second), margin=margin, worst=low, verdict=verdict)

    @property
    def claim(self) -> str:
        """ "No worse than 2 points: shown"."""
        much = f"{plain_points(self.margin)} point{'s' * (self.margin != 1)}"
        return f"No worse than {much}: {'not shown' if self.verdict == 'worse' else self.verdict}"

    @property
    def reason(self) -> str:
        """By what the claim holds, or does not."""
        return {
            "shown": f"the 95 % interval of the difference ends at {points(self.worst)}, within the margin",
            "not shown": f"the 95 % interval of the difference reaches {points(self.worst)}; more questions narrow it",
            "worse": "the whole 95 % interval of the difference lies below the margin",
        }[self.verdict]

    @property
    def sentence(self) -> str:
        """The claim with its reason."""
        return f"{self.claim} ({self.reason})."
