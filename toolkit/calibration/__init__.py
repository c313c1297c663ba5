"""Watch the experts on the task: run the original model over training examples and leave statistics."""

from toolkit.calibration.calibrate import calibrate, calibrate_sources
from toolkit.calibration.thresholds import skipping_thresholds
from toolkit.calibration.totals import Totals
from toolkit.calibration.watch import Watcher, watch

__all__ = ["Totals", "Watcher", "calibrate", "calibrate_sources", "skipping_thresholds", "watch"]
