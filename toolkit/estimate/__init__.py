"""Before the bill: what a recipe takes in memory, time and disk on a given machine, from the model's configuration alone.

Everything is an estimate. Nothing is fetched, no weights are read, no GPU is needed.
"""

from toolkit.estimate.advice import Combined, advice, combined_advice
from toolkit.estimate.estimator import Estimator
from toolkit.estimate.machine import GPUS, Machine, machine
from toolkit.estimate.stage_estimate import Estimate, StageEstimate

__all__ = [
    "GPUS", "Combined", "Estimate", "Estimator", "Machine", "StageEstimate", "advice", "combined_advice", "machine",
]  # fmt: skip
