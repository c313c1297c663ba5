"""What single cuts say of combined ones, which shapes are measured, and which one is chosen."""

import math

from toolkit.cuts.fit_result import Axis, AxisPoint, FitShape, MeasuredShape, ShapeRecord, TrialRecovery
from toolkit.selection.fit import Deltas, best_measured, paired_choice, to_measure

AXES = [
    Axis(cut="layers", original=4, points=[AxisPoint(value=3, delta=1.0), AxisPoint(value=2, delta=None)]),
    Axis(cut="width", original=32, points=[AxisPoint(value=8, delta=0.8), AxisPoint(value=16, delta=0.2)]),
]


def record(layers: int, bytes_: int, **changes: object) -> ShapeRecord:
    counts = {"layers": layers, "experts": 8, "width": 32, "experts_per_token": 2, "active_parameters": 1, "parameters": bytes_}
    return ShapeRecord.model_validate(counts | {"bytes": bytes_} | changes)


def test_the_original_adds_nothing_and_cuts_add_up() -> None:
    deltas = Deltas.of(AXES)
    assert deltas.predicted(FitShape(4, 8, 32, 2)) == 0.0
    assert deltas.predicted(FitShape(3, 8, 16, 2)) == 1.2
    assert math.isclose(deltas.predicted(FitShape(4, 6, 12, 2)), 0.5)  # between two widths; experts were not measured
    assert math.isclose(deltas.predicted(FitShape(4, 8, 24, 2)), 0.1)  # between a width and all of it
    assert deltas.predicted(FitShape(2, 8, 32, 2)) == math.inf  # a loss that is not finite


def test_the_best_single_cuts_and_the_best_dense_shape_are_always_measured() -> None:
    shapes = [
        record(4, 40, predicted=0.5), record(3, 30, predicted=0.1), record(2, 20, predicted=0.9, single_cut="layers"),
        record(1, 10, predicted=None), record(4, 41, predicted=0.05, refused="too large"),
        record(4, 40, predicted=0.3, form="dense"), record(3, 40, predicted=0.2, form="dense"),
    ]  # fmt: skip
    assert to_measure(shapes, 1) == [1, 2, 6]
    assert to_measure(shapes, 9) == [1, 0, 2, 3, 6]


def test_the_metric_decides_and_of_equals_the_smaller_shape() -> None:
    shapes = [
        record(4, 40, measured=MeasuredShape(loss=0.1, score=0.5, n=10)),
        record(3, 30, measured=MeasuredShape(loss=0.2, score=0.9, n=10, kl=0.3)),
        record(2, 20, measured=MeasuredShape(loss=0.1, score=0.9, n=10, kl=0.2)),
        record(1, 10, measured=MeasuredShape(loss=None, score=0.0, n=10)),
        record(1, 9),
    ]
    assert best_measured(shapes, "dev_loss", 9) == [2, 0, 1, 3]
    assert best_measured(shapes, "accuracy", 2) == [2, 1]
    assert best_measured(shapes, "fidelity", 1) == [2]


def test_right_answers_after_the_trial_decide_and_of_equals_the_loss() -> None:
    shapes = [
        record(4, 40, trial=TrialRecovery(loss=0.3, score=0.8, n=10, steps=3)),
        record(3, 30, trial=TrialRecovery(loss=0.2, score=0.9, n=10, steps=3)),
        record(2, 20, trial=TrialRecovery(loss=0.1, score=0.9, n=10, steps=3)),
    ]
    assert paired_choice(shapes, [0, 1, 2]) == 2
    assert paired_choice(shapes, [0, 1]) == 1
