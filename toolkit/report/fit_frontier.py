"""From fit.json to the report's facts: which shapes are shown and in which order, which of them no smaller one beats, and how far
the prediction from single cuts was right.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import StatisticsError, correlation

from toolkit.cuts.fit_result import Answered, FitResult, OriginalSize, ShapeRecord, unbeaten
from toolkit.report.fit_allocation import FitAllocation
from toolkit.report.fit_facts import FitFacts, FitOriginal, FitShapeFacts, SizeField
from toolkit.report.paired import PairedComparison
from toolkit.runtime.intervals import pair_of

SHOWN = 8  # shapes that look best, where none is measured yet
FEWEST = 3  # shapes that have an order worth comparing


def fit_facts(result: FitResult, shown: int = SHOWN) -> FitFacts:
    """What a report tells of a fit, however far it has come. `shown`: so many of those that look best, where none is measured."""
    original = result.original.measured
    by_prediction = sorted((shape for shape in result.shapes if not shape.refused), key=_prediction)
    listed = _ordered(result) or by_prediction[:shown]
    places = {id(shape) for shape in listed}
    unlisted = [shape for shape in result.shapes if id(shape) not in places]
    others = [shape for shape in by_prediction if id(shape) not in places]
    shapes = [_shape_facts(shape, original) for shape in listed]
    size_by = _size_field(result.limits)
    chosen = None if result.chosen is None else next(i for i, shape in enumerate(listed) if shape is result.choice)
    return FitFacts(
        limits=result.limits,
        dtype=result.dtype,
        metric=result.metric,
        size_by=size_by,
        considered=len(result.shapes),
        refused=dict(Counter(shape.refused for shape in unlisted if shape.refused).most_common()),
        others=len(others),
        best_other=_finite(others[0].predicted) if others else None,
        original=_original_facts(result.original),
        shapes=shapes,
        chosen=chosen,
        reason=result.reason,
        frontier=frontier(shapes, size_by),
        runner_up=_runner_up(listed) if chosen == 0 else None,
        rank_correlation=_rank_correlation(shapes),
        axes=result.axes,
        allocation=FitAllocation.of(result.allocation) if result.allocation else None,
        seconds={stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
    )  # fmt: skip


def frontier(shapes: Sequence[FitShapeFacts], size_by: SizeField) -> list[int]:
    """Places of the measured shapes that none of the same size or a smaller one beats, as measured, from the smallest on."""
    by_accuracy = compares_accuracy(shapes)
    places = [(i, shape, shape.measured) for i, shape in enumerate(shapes) if shape.measured and not shape.refused]
    losses = [
        _worse(-measured.score if by_accuracy and measured.score is not None else measured.delta) for _, _, measured in places
    ]
    return [places[at][0] for at in unbeaten([getattr(shape, size_by) for _, shape, _ in places], losses)]


def compares_accuracy(shapes: Sequence[FitShapeFacts]) -> bool:
    """Whether every measured shape has an accuracy; else they are compared by their losses."""
    measured = [shape.measured for shape in shapes if shape.measured]
    return bool(measured) and all(answers.score is not None for answers in measured)


def _ordered(result: FitResult) -> list[ShapeRecord]:
    """Shapes that were measured: the chosen one, trials by their accuracy, others by the fit's metric, refused ones."""
    measured = [shape for shape in result.shapes if shape.measured or shape.trial]
    chosen = None if result.chosen is None else result.choice
    if chosen is not None and chosen not in measured:
        measured.append(chosen)
    return sorted(
        measured,
        key=lambda shape: (shape is not chosen, shape.refused is not None, shape.trial is None, _rank(shape, result.metric)),
    )


def _rank(shape: ShapeRecord, metric: str) -> tuple[float, float]:
    """Lower is better; of a trial, accuracy decides."""
    answers = shape.trial or shape.measured
    if answers is None:
        return math.inf, math.inf
    loss, wrong = _worse(answers.loss), math.inf if answers.score is None else -answers.score
    if shape.trial or metric == "accuracy":
        return wrong, loss
    return (_worse(answers.kl), loss) if metric == "fidelity" else (loss, wrong)


def _prediction(shape: ShapeRecord) -> tuple[float, int]:
    """Lower is better; of equal ones, the larger."""
    return _worse(shape.predicted), -shape.bytes


def _worse(number: float | None) -> float:
    """What was not measured, or is not finite, is worse than anything."""
    return math.inf if number is None or not math.isfinite(number) else number


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _size_field(limits: dict[str, int]) -> SizeField:
    """The size that is limited: on disk, unless only parameters are."""
    if {"bytes", "gpu"} & limits.keys() or not limits:
        return "bytes"
    return "parameters" if "parameters" in limits else "active_parameters"


def _shape_facts(shape: ShapeRecord, original: Answered | None) -> FitShapeFacts:
    """Of a trial, the loss is measured as it is, of other shapes above the original's."""
    measured, trial, before = shape.measured, shape.trial, _finite(original.loss) if original else None
    after = _finite(trial.loss) if trial else None
    added = None if after is None or before is None else round(after - before, 6)
    results = {"measured": _answers(measured, measured.loss if measured else None), "trial": _answers(trial, added)}
    return FitShapeFacts.model_validate(shape.model_dump() | {"predicted": _finite(shape.predicted)} | results)


def _original_facts(original: OriginalSize) -> FitOriginal:
    measured = original.measured
    loss = _finite(measured.loss) if measured else None
    results = {"loss": loss, "measured": _answers(measured, None if loss is None else 0.0)}
    return FitOriginal.model_validate(original.model_dump() | results)


def _answers(answers: Answered | None, delta: float | None) -> dict[str, object] | None:
    """What FitAnswers, FitMeasured and FitTrial are made of."""
    if answers is None:
        return None
    return answers.model_dump(exclude={"right", "loss"}) | {"delta": _finite(delta), "kl": _finite(answers.kl)}


def _runner_up(listed: Sequence[ShapeRecord]) -> PairedComparison[int] | None:
    """The first of these shapes against the second, where both answered the same questions at the same stage."""
    if len(listed) < 2 or listed[1].refused:
        return None
    first, second = (shape.trial or shape.measured for shape in listed[:2])
    if not first or not second or type(first) is not type(second) or not first.right or len(first.right) != len(second.right):
        return None
    return PairedComparison[int].of(0, 1, pair_of(first.right, second.right))


def _rank_correlation(shapes: Sequence[FitShapeFacts]) -> float | None:
    """Spearman's; None for fewer than three, or where all are equal."""
    known = [
        (shape.predicted, shape.measured.delta)
        for shape in shapes
        if shape.predicted is not None and shape.measured and shape.measured.delta is not None
    ]
    if len(known) < FEWEST:
        return None
    predicted, measured = zip(*known, strict=True)
    try:
        return round(correlation(_ranks(predicted), _ranks(measured)), 4)
    except StatisticsError:
        return None


def _ranks(numbers: Sequence[float]) -> list[float]:
    """Equal numbers share the mean of their ranks."""
    ordered = sorted(numbers)
    return [ordered.index(number) + (ordered.count(number) + 1) / 2 for number in numbers]
