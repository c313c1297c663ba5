"""Observe the experts on the task: run the original model over training examples and collect statistics."""

from toolkit.calibration.calibrate import CalibrationSource, calibrate, calibrate_mix
from toolkit.calibration.dense_coefficients import fit_dense
from toolkit.calibration.observer import Observer, StatisticsObserver
from toolkit.calibration.passes import observe
from toolkit.calibration.skipping_thresholds import skipping_thresholds

__all__ = [
    "CalibrationSource", "Observer", "StatisticsObserver", "calibrate", "calibrate_mix", "fit_dense", "observe",
    "skipping_thresholds",
]  # fmt: skip
