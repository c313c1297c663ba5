"""What a report tells of a fit, typed: fit.json without the shapes that nobody measured.

    "fit": {"limits": {"bytes": 3900000}, "metric": "dev_loss", "considered": 212, "refused": {"larger than 3.7 MiB": 120},
            "original": {…}, "shapes": [{"layers": 4, "experts": 6, …, "measured": {"delta": 0.1, "score": 0.81, …}, …}, …], …}

Shapes stand in the order of their results, the chosen one first: page, card and terminal number them so, from 1. Losses are nats
per completion token of the dev slice, deltas what is added to the original's; None where they are not finite.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from toolkit.cuts.fit_result import Axis
from toolkit.report.fit_allocation import FitAllocation
from toolkit.report.measurements import Facts, Interval, Number
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import amount, p_value, percent, points, precise_size, signed_loss

SizeField = Literal["bytes", "parameters", "active_parameters"]
NOT_FINITE = "not finite"
AGREEMENT = 0.5  # rank correlation below which the prediction is called a poor guide
SINGLE_CUTS = {"experts": "experts alone", "width": "width alone", "layers": "layers alone", "dense": "dense"}
AXIS_NAMES = {
    "experts": "experts per block", "width": "channels per expert", "layers": "layers", "experts_per_token": "active experts"
}  # fmt: skip
SIZE_NAMES: dict[SizeField, str] = {
    "bytes": "size on disk", "parameters": "parameters", "active_parameters": "parameters active per token"
}  # fmt: skip


class FitAnswers(Facts):
    """What a model did on the dev slice. `delta`: of its loss; `kl`: from the original, where the metric is fidelity."""

    delta: Number | None
    score: Number | None
    n: int
    interval: Interval | None
    kl: Number | None


class FitMeasured(FitAnswers):
    """A shape, as if it were written."""

    refit: bool


class FitTrial(FitAnswers):
    """A shape, written and fine-tuned for so many steps."""

    steps: int


class SizedShape(Facts):
    """A shape and its size. `experts`: per block; `width`: channels per expert."""

    layers: int
    experts: int
    width: int
    experts_per_token: int
    form: Literal["moe", "dense"] = "moe"
    parameters: int
    active_parameters: int
    bytes: int

    @property
    def text(self) -> str:
        """ "4 layers, 6 experts of 152 channels, 2 per token"."""
        experts = f"{self.experts} expert{'s' * (self.experts > 1)} of {self.width:,} channels"
        layers = f"{self.layers} layer{'s' * (self.layers > 1)}"
        return (
            f"{layers}, dense ({experts})" if self.form == "dense" else f"{layers}, {experts}, {self.experts_per_token} per token"
        )

    def size_text(self, by: SizeField) -> str:
        return precise_size(self.bytes) if by == "bytes" else f"{amount(getattr(self, by))} parameters"


class FitOriginal(SizedShape):
    """`loss`: the one that deltas are added to."""

    loss: Number | None
    measured: FitAnswers | None


class FitShapeFacts(SizedShape):
    """`predicted`: the sum of the deltas of its cuts, each alone. `single_cut`: what it alone cuts, where it is the best such."""

    single_cut: Literal["experts", "width", "layers", "dense"] | None
    predicted: Number | None
    measured: FitMeasured | None
    trial: FitTrial | None
    refused: str | None

    @property
    def result(self) -> FitAnswers | None:
        """The latest: of the trial, else as measured."""
        return self.trial or self.measured


class FitFacts(Facts):
    """`considered`: all shapes; `refused`: those without a measurement, by reason; `others` meet the limits and looked worse, the
    best of them by `best_other` nats. `shapes`: those measured; before anything is, the few that look best. Places in `shapes`:
    `chosen`, and `frontier`, those that no smaller one beats. `runner_up`: the first shape against the second, question by
    question. `rank_correlation`: Spearman's, of predicted and measured losses. `seconds`: by stage.
    `allocation`: of the chosen shape, where other numbers of experts per block were measured."""

    limits: dict[str, int]
    dtype: str
    metric: Literal["dev_loss", "accuracy", "fidelity"]
    size_by: SizeField
    considered: int
    refused: dict[str, int]
    others: int
    best_other: Number | None
    original: FitOriginal
    shapes: list[FitShapeFacts]
    chosen: int | None
    reason: str
    frontier: list[int]
    runner_up: PairedComparison[int] | None
    rank_correlation: Number | None
    axes: list[Axis]
    allocation: FitAllocation | None
    seconds: dict[str, Number]

    @property
    def choice(self) -> FitShapeFacts | None:
        return None if self.chosen is None else self.shapes[self.chosen]

    @property
    def measured(self) -> list[FitShapeFacts]:
        return [shape for shape in self.shapes if shape.measured]

    @property
    def eligible(self) -> list[FitShapeFacts]:
        """Measured, and not refused since."""
        return [shape for shape in self.measured if shape.refused is None]

    @property
    def tried(self) -> list[FitShapeFacts]:
        return [shape for shape in self.shapes if shape.trial]

    @property
    def has_accuracy(self) -> bool:
        return any(shape.measured and shape.measured.score is not None for shape in self.shapes)

    @property
    def has_kl(self) -> bool:
        return any(shape.measured and shape.measured.kl is not None for shape in self.shapes)

    @property
    def limit_text(self) -> str:
        """ "12.00 GiB on disk"."""
        return " and ".join(_limit_texts(self.limits)) or "no size"

    @property
    def sentence(self) -> str:
        """ "The shape was found under a limit of 12.00 GiB on disk: the best of 11 measured, of 212 considered."."""
        under, considered = f"a limit of {self.limit_text}", f"of {self.considered:,} considered"
        if self.chosen is None:
            return f"Under {under} no shape is chosen yet: {len(self.measured):,} measured, {considered}."
        tried = f"{len(self.tried):,} that were fine-tuned for a trial, of " if self.tried else ""
        return f"The shape was found under {under}: the best of {tried}{len(self.measured):,} measured, {considered}."

    def predicted_text(self, shape: FitShapeFacts) -> str:
        """ "+0.3512", or "not finite"; a dash before the cuts were measured."""
        return NOT_FINITE if shape.predicted is None and self.axes else signed_loss(shape.predicted)

    @property
    def recommendation(self) -> str:
        """ "Chosen: 4 layers, 6 experts of 152 channels, 2 per token (3.36 MiB): the smallest loss of 8 shapes."."""
        reason = self.reason.removesuffix(".")
        if not self.choice:
            return f"{reason}." if reason else ""
        return f"Chosen: {self.choice.text} ({self.choice.size_text(self.size_by)}){': ' * bool(reason)}{reason}."


def delta_text(answers: FitAnswers | None) -> str:
    """ "+0.3512", or "not finite"; a dash where nothing was measured."""
    return NOT_FINITE if answers and answers.delta is None else signed_loss(answers.delta if answers else None)


def result_text(answers: FitAnswers) -> str:
    """The accuracy, where it was measured, else the loss: "dev accuracy 81.2 %", "dev loss +0.3512"."""
    if answers.score is not None:
        return f"dev accuracy {percent(answers.score)}"
    return f"dev loss {delta_text(answers)}"


def _limit_texts(limits: Mapping[str, int]) -> list[str]:
    found = dict(limits)
    context, batch = found.pop("context", None), found.pop("batch", None)
    use = ", ".join([*([f"context {context:,}"] if context else []), *([f"batch {batch:,}"] if batch else [])])
    texts = {
        "bytes": lambda number: f"{precise_size(number)} on disk",
        "parameters": lambda number: f"{amount(number)} parameters",
        "active": lambda number: f"{amount(number)} parameters active per token",
        "gpu": lambda number: f"a GPU of {precise_size(number)}" + (f" ({use})" if use else ""),
    }
    return [texts[key](number) if key in texts else f"{key} {number:,}" for key, number in found.items()]


def fit_warnings(fit: FitFacts | None) -> Sequence[str]:
    """What makes the choice of the shape doubtful."""
    if not fit or not fit.choice or not fit.choice.result:
        return []
    return [*_about_runner_up(fit), *_about_prediction(fit), *_about_largest(fit), *_about_not_finite(fit)]


def _about_runner_up(fit: FitFacts) -> list[str]:
    found = fit.runner_up
    if not found or (found.significant and found.difference > 0):
        return []
    second, (low, high) = fit.shapes[found.second], map(points, found.interval)
    what = (
        "says that the second is better than the shape chosen"
        if found.significant
        else "does not tell the shape chosen from the second"
    )
    return [
        f"Dev accuracy {what} ({second.text}): {points(found.difference)} points on {found.n:,} questions "
        f"(95 % interval {low} to {high}, McNemar {p_value(found.p)})."
    ]


def _about_prediction(fit: FitFacts) -> list[str]:
    if fit.rank_correlation is None or fit.rank_correlation >= AGREEMENT:
        return []
    return [
        f"The {len(fit.measured):,} shapes measured stand in another order than predicted from each cut alone (rank correlation "
        f"{fit.rank_correlation:.2f}): among those that were not measured may be a better one (pruning.fit.measured)."
    ]


def _about_largest(fit: FitFacts) -> list[str]:
    """Of those measured, by the size that is limited."""
    choice = fit.choice
    assert choice is not None
    largest = max(fit.eligible, key=lambda shape: getattr(shape, fit.size_by), default=choice)
    if getattr(largest, fit.size_by) <= getattr(choice, fit.size_by) or not (largest.measured and choice.measured):
        return []
    pair = (largest.trial, choice.trial) if largest.trial and choice.trial else (largest.measured, choice.measured)
    of_largest, of_choice = map(result_text, pair)
    return [
        f"The largest shape measured is not the one chosen: {largest.text} ({largest.size_text(fit.size_by)}), {of_largest}; "
        f"chosen ({choice.size_text(fit.size_by)}), {of_choice}."
    ]


def _about_not_finite(fit: FitFacts) -> list[str]:
    broken = [number for number, shape in enumerate(fit.shapes, start=1) if shape.measured and shape.measured.delta is None]
    numbers = ", ".join(map(str, broken))
    return (
        [f"The dev loss is not finite for {len(broken)} of {len(fit.measured)} shapes measured (number {numbers})."]
        if broken
        else []
    )
