"""Watch the experts on the task: run the original model over training examples and leave statistics."""

from toolkit.calibration.calibrate import calibrate, calibrate_sources
from toolkit.calibration.observer import Observer, StatisticsObserver, observe
from toolkit.calibration.skipping_thresholds import skipping_thresholds

__all__ = ["Observer", "StatisticsObserver", "calibrate", "calibrate_sources", "observe", "skipping_thresholds"]
