import pytest
import torch
from small_run import small_recipe

from toolkit.pipeline.full_memory import explained_full_memory, smaller
from toolkit.recipe.file import Recipe
from toolkit.runtime.errors import PollardError


@pytest.mark.parametrize(
    ("stage", "recipe", "remedy"),
    [
        ("calibrate", small_recipe(), "calibration.batch_size=2"),
        ("evaluate/original", small_recipe(), "evaluation.batch_size=1, or model.placement=spread"),
        ("recover", small_recipe(finetuning={"trainer": {"per_device_train_batch_size": 8}}),
         "finetuning.trainer.per_device_train_batch_size=4 finetuning.trainer.gradient_accumulation_steps=2 (the same training)"),
        ("recover", small_recipe(finetuning={"zero": 3, "trainer": {"per_device_train_batch_size": 1}}),
         "finetuning.method=lora, or finetuning.zero=3-offload"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_full_is_told_with_what_to_make_smaller(stage: str, recipe: Recipe, remedy: str) -> None:
    with pytest.raises(PollardError) as error, explained_full_memory(stage, lambda: smaller(stage, recipe)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
    assert f"in stage {stage}. Try {remedy}" in str(error.value)
    assert str(error.value).endswith("(torch says: CUDA out of memory. Tried to allocate 2.00 GiB.)")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), explained_full_memory("calibrate", lambda: "nothing"):
        raise KeyError("x")
