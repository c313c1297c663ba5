"""What other numbers of experts in each block would give at the size of the chosen shape: typed, and in a sentence.

"allocation": {"keep": 4, "experts": {"model.layers.0.mlp": 6, …}, "uniform_loss": 0.62, "loss": 0.6, "difference": 0.01, …}
"""

from collections.abc import Sequence

from toolkit.cuts.fit_result import AllocationRecord
from toolkit.report.measurements import Facts, Interval, Number
from toolkit.runtime.formatting import loss, p_value, points

LISTED = 12  # blocks: of more, the least and the most are told


class FitAllocation(Facts):
    """`experts`, and the active ones, by block; losses in nats per token of the dev slice (None: not finite), on which the
    numbers were chosen. `difference`: of the shares of right answers to those of the uniform shape; None without questions.
    `measurements`: losses of the search."""

    keep: int
    experts: dict[str, int]
    experts_per_token: dict[str, int]
    uniform_loss: Number | None
    loss: Number | None
    uniform_score: Number | None
    score: Number | None
    n: int
    difference: Number | None
    interval: Interval | None
    p: Number | None
    measurements: int
    not_written: str

    @classmethod
    def of(cls, record: AllocationRecord) -> "FitAllocation":
        uniform, measured = record.uniform, record.measured
        results = {"uniform_loss": uniform.loss, "uniform_score": uniform.score, "loss": measured.loss, "score": measured.score}
        return cls.model_validate(record.model_dump() | results | {"n": measured.n})

    @property
    def sentence(self) -> str:
        """ "Other numbers of experts per block at the same size (6, 2, 4 instead of 4 each): loss 0.6000 instead of 0.62…"."""
        experts, active = list(self.experts.values()), list(self.experts_per_token.values())
        if len({*experts}) == len({*active}) == 1:
            return f"Other numbers of experts per block: none was found better, of {self.measurements:,} that were measured."
        numbers = f"{_listed(experts)} instead of {self.keep} each" + f"; {_listed(active)} active" * (len({*active}) > 1)
        losses = [loss(each) if each is not None else "not finite" for each in (self.loss, self.uniform_loss)]
        text = f"Other numbers of experts per block at the same size ({numbers}): loss {' instead of '.join(losses)}"
        if self.difference is not None and self.interval and self.p is not None:
            ends = " to ".join(map(points, self.interval))
            text += f", {points(self.difference)} points of dev accuracy (95 % interval {ends}, {p_value(self.p)})"
        return f"{text}, on the examples by whose loss they were chosen. Not written: {self.not_written.removesuffix('.')}."


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= LISTED else f"{min(numbers)} to {max(numbers)}"
