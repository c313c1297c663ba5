"""Whether the result is no worse than the original by more than a margin that the user has named: a test of non-inferiority.

    evaluation:
      margin: 2

With −0.6 points, 95 % interval −1.7 to +0.4: "no worse than 2 points: shown". A difference that is not significant does not show
this, and a significant one need not contradict it: a loss of 0.5 points can be certain, and small enough.
"""

from toolkit.report.measurements import Facts, Number
from toolkit.runtime.formatting import points


class MarginFacts(Facts):
    """`points` is the margin, in percentage points; `lowest` the lower end of the paired difference's 95 % interval, a fraction.
    With one end of a two-sided 95 % interval, an error is at most 2.5 % likely."""

    points: Number
    lowest: Number
    shown: bool

    @classmethod
    def of(cls, margin: float, interval: tuple[float, float]) -> "MarginFacts":
        """Shown where the whole interval lies above minus the margin."""
        return cls(points=margin, lowest=interval[0], shown=100 * interval[0] > -margin)

    @property
    def verdict(self) -> str:
        """ "No worse than 2 points: shown (the 95 % interval ends at −1.3)."."""
        if self.shown:
            return f"No worse than {self.points:g} points: shown (the 95 % interval ends at {points(self.lowest)})."
        loss = points(-self.lowest).lstrip("+")
        return f"No worse than {self.points:g} points: not shown (a loss of {loss} points cannot be ruled out)."
