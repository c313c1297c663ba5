"""Arithmetic of memory, time and disk, from a model's configuration alone: no weights are read, no GPU is needed.

What a stage holds and computes is put together by the stage itself (toolkit/pipeline/stages).
"""

from toolkit.estimate.cpu_speed import CPUSpeed, measure_cpu
from toolkit.estimate.data_size import DataSize, DataSizes, StudentSizes
from toolkit.estimate.finetuning import FineTuning, TrainerSettings, cannot_fit, estimate_finetuning
from toolkit.estimate.inference import (
    LogitsPass,
    answering_memory,
    estimate_generation,
    estimate_logits_pass,
    estimate_served,
    row_bytes,
)
from toolkit.estimate.machine import Machine, resolve_machine
from toolkit.estimate.masked_losses import estimate_masked_losses
from toolkit.estimate.model_size import ModelSize, model_size
from toolkit.estimate.observation import SearchSize, estimate_observation
from toolkit.estimate.placement import ModelPlacement, place_model
from toolkit.estimate.refit import RefitSize, RefitUnit, estimate_refit
from toolkit.estimate.stage_estimate import (
    DISK_BANDWIDTH,
    Estimate,
    StageEstimate,
    combined_estimate,
    count,
    memory_on,
    preceded,
    repeated,
)
from toolkit.estimate.training_memory import TrainingModel
from toolkit.runtime.gpus import GIB, GPUS

__all__ = [
    "DISK_BANDWIDTH",
    "GIB",
    "GPUS",
    "CPUSpeed",
    "DataSize",
    "DataSizes",
    "Estimate",
    "FineTuning",
    "LogitsPass",
    "Machine",
    "ModelPlacement",
    "ModelSize",
    "RefitSize",
    "RefitUnit",
    "SearchSize",
    "StageEstimate",
    "StudentSizes",
    "TrainerSettings",
    "TrainingModel",
    "answering_memory",
    "cannot_fit",
    "combined_estimate",
    "count",
    "estimate_finetuning",
    "estimate_generation",
    "estimate_logits_pass",
    "estimate_masked_losses",
    "estimate_observation",
    "estimate_refit",
    "estimate_served",
    "measure_cpu",
    "memory_on",
    "model_size",
    "place_model",
    "preceded",
    "repeated",
    "resolve_machine",
    "row_bytes",
]  # fmt: skip
