"""A GPU whose memory is full: the stage says what to make smaller."""

import pytest
import torch
from conftest import raises
from small_run import small_recipe

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.full_memory import explained_full_memory
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.evaluate import Evaluate
from toolkit.pipeline.stages.fidelity import Fidelity
from toolkit.pipeline.stages.recover import Recover
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe


def training(**finetuning: object) -> Recipe:
    return small_recipe(finetuning=finetuning)


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        (Calibrate(RunContext(small_recipe())), "calibration.batch_size=2"),
        (Evaluate(RunContext(small_recipe()), Role.ORIGINAL), "evaluation.batch_size=1, or model.placement=spread"),
        (Fidelity(RunContext(small_recipe()), Role.PRUNED), "calibration.batch_size=2"),  # gold answers are read in its batches
        (Recover(RunContext(training(trainer={"per_device_train_batch_size": 8}))),
         "finetuning.trainer.per_device_train_batch_size=4 finetuning.trainer.gradient_accumulation_steps=2 (the same training)"),
        (Recover(RunContext(training(zero=3, trainer={"per_device_train_batch_size": 1}))),
         "finetuning.method=lora, or finetuning.zero=3-offload"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_full_is_told_with_what_to_make_smaller(stage: Stage, remedy: str) -> None:
    torch_says = "CUDA out of memory. Tried to allocate 2.00 GiB."
    with raises("machine.gpu-memory-full", stage.name, remedy, torch_says), explained_full_memory(stage.name, stage.smaller):
        raise torch.OutOfMemoryError(f"{torch_says}\nMore of it.")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), explained_full_memory("calibrate", lambda: ""):
        raise KeyError("x")
