"""Watch the experts on the task: run the original model over training examples and leave statistics."""

from toolkit.calibration.calibrate import Watcher, calibrate, watch
from toolkit.calibration.totals import Totals

__all__ = ["Totals", "Watcher", "calibrate", "watch"]
