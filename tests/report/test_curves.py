"""Law: geometry follows the numbers."""

import pytest

from toolkit.report.curves import log_ticks, loss_curve, nice_ticks


def test_the_curve_runs_from_the_first_to_the_last_logged_step() -> None:
    curve = loss_curve({"recovered": {"loss": [[10, 2.0], [20, 1.0]], "dev_loss": [[20, 1.5]]}, "control": None})
    assert curve is not None and not curve.logarithmic
    [line] = curve.lines
    assert line.train == ["50,0 100,100"]
    assert line.dev == [(100.0, 50.0, "recovered, step 20: dev loss 1.5000")]
    assert (curve.losses[0].label, curve.losses[0].at) == ("1", 100.0)


def test_both_trainings_are_drawn_on_one_scale() -> None:
    curve = loss_curve({"recovered": {"loss": [[10, 2.0]], "dev_loss": []}, "control": {"loss": [[20, 1.0]], "dev_loss": []}})
    assert curve is not None
    assert [(line.role, line.train) for line in curve.lines] == [("recovered", ["50,0"]), ("control", ["100,100"])]


def test_losses_that_fall_a_hundredfold_are_drawn_on_a_logarithmic_scale() -> None:
    curve = loss_curve({"recovered": {"loss": [[1, 1.0], [2, 0.1], [3, 0.01]], "dev_loss": []}})
    assert curve is not None and curve.logarithmic
    assert curve.lines[0].train == ["33.33,0 66.67,50 100,100"]
    assert [tick.label for tick in curve.losses] == ["0.01", "0.1", "1"]


def test_logarithmic_ticks_enclose_the_data() -> None:
    assert log_ticks(0.003, 2.0) == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_a_loss_that_is_not_finite_breaks_the_line() -> None:
    curve = loss_curve({"recovered": {"loss": [[1, 3.0], [2, None], [3, 2.0]], "dev_loss": []}})
    assert curve is not None and len(curve.lines[0].train) == 2


@pytest.mark.parametrize("training", [None, {"loss": [], "dev_loss": []}, {"loss": [[1, None]], "dev_loss": []}])
def test_without_a_finite_loss_there_is_no_curve(training: dict | None) -> None:
    assert loss_curve({"recovered": training}) is None


@pytest.mark.parametrize(("low", "high"), [(0.35, 1.45), (0.0, 300.0), (2.0, 2.0), (1e-7, 3e-7), (0.9999, 1.0001)])
def test_ticks_are_few_ascending_and_enclose_the_data(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
