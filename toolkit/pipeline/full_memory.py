"""A GPU whose memory is full is no bug: what to make smaller depends on the stage."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.recipe.schema import Recipe
from toolkit.recovery.trainer_defaults import trainer_defaults
from toolkit.runtime.errors import PollardError


@contextmanager
def explained_full_memory(stage: str, smaller: Callable[[], str]) -> Iterator[None]:
    """torch's OutOfMemoryError as a PollardError; every other error passes. `smaller`: the overrides that make the stage take
    less."""
    try:
        yield
    except Exception as error:
        torch = sys.modules["torch"]
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise PollardError(
            f"The GPU's memory is full in stage {stage}. Try {smaller()}. `pollard estimate` tells what each stage "
            f"takes, and of what. Stages that are done stay done.\n(torch says: {str(error).strip().splitlines()[0]})",
            code="machine.gpu-memory-full",
        ) from error


def smaller(stage: str, recipe: Recipe) -> str:
    """The overrides that make a stage take less."""
    kind = stage.partition("/")[0]
    if kind in ("calibrate", "teacher"):
        return f"calibration.batch_size={_half(recipe.calibration.batch_size)}"
    if kind in ("recover", "control", "rounds"):
        settings = trainer_defaults(True, recipe) | recipe.finetuning.trainer
        batch, accumulated = (int(settings.get(key, 1)) for key in ("per_device_train_batch_size", "gradient_accumulation_steps"))
        parts = "" if str(recipe.finetuning.zero).startswith("3") else ", or finetuning.zero=3 on several GPUs"
        if batch > 1:
            return (
                f"finetuning.trainer.per_device_train_batch_size={_half(batch)} "
                f"finetuning.trainer.gradient_accumulation_steps={2 * accumulated} (the same training){parts}"
            )
        return f"finetuning.method=lora{parts or ', or finetuning.zero=3-offload'}"
    questions = recipe.evaluation.batch_size
    return f"evaluation.batch_size={8 if questions == 'auto' else _half(questions)}, or model.placement=spread"


def _half(number: int) -> int:
    return max(1, number // 2)
