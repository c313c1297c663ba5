import json
from pathlib import Path

import pytest
import torch

from toolkit.recipe.schema import Recipe
from toolkit.recovery.settings import sft_config
from toolkit.runtime.errors import PollardError
from toolkit.runtime.zero import deepspeed_config


def recipe(dtype: str = "auto", **finetuning) -> Recipe:
    values = {"name": "t", "model": {"path": "m", "dtype": dtype}, "task": "gsm8k", "finetuning": finetuning}
    return Recipe.model_validate(values)


def test_any_field_of_sftconfig_passes_through_and_wins_over_our_defaults(tmp_path: Path) -> None:
    found = sft_config(recipe(trainer={"learning_rate": 0.5, "adam_beta2": 0.9, "optim": "adamw_bnb_8bit"}), tmp_path)
    assert (found.learning_rate, found.adam_beta2, found.optim) == (0.5, 0.9, "adamw_bnb_8bit")
    assert (found.num_train_epochs, found.router_aux_loss_coef) == (3, 0.0)


def test_all_faulty_trainer_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PollardError) as error:
        sft_config(recipe(trainer={"learning_rat": 1, "output_dir": "x", "deepspeed": "x.json", "warmup_ratio": 0.1}), tmp_path)
    said = str(error.value)
    assert "finetuning.trainer.learning_rat is not a field of trl's SFTConfig. Did you mean `learning_rate`?" in said
    assert "finetuning.trainer.deepspeed is not yours to set here: set `finetuning.zero` instead" in said
    assert "finetuning.trainer.output_dir is not yours to set here: set `name` instead" in said
    assert "finetuning.trainer.warmup_ratio is not a field" in said


def test_what_sftconfig_itself_refuses_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"SFTConfig refuses this.*sometimes"):
        sft_config(recipe(trainer={"eval_strategy": "sometimes"}), tmp_path)


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"learning_rate": "fast"}, "learning_rate must be a valid number, unable to parse string as a number (given: 'fast')"),
        ({"max_steps": 2.5}, "max_steps must be a valid integer"),
        ({"bf16": "perhaps"}, "bf16 must be a valid boolean"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be 1 or more (given: 0)"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be 1 or more (given: 0)"),
        ({"learning_rate": -1e-5}, "learning_rate must be positive (given: -1e-05)"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0: nothing would be trained"),
        ({"num_train_epochs": -2}, "num_train_epochs is -2: nothing would be trained"),
    ],
)
def test_a_value_of_another_type_is_told_before_it_breaks_the_training(trainer: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(PollardError) as error:
        sft_config(recipe(trainer=trainer), tmp_path)
    assert f"finetuning.trainer.{said}" in str(error.value)


def test_steps_decide_where_they_are_given(tmp_path: Path) -> None:
    assert sft_config(recipe(trainer={"num_train_epochs": 0, "max_steps": 3}), tmp_path).max_steps == 3


def test_a_kill_costs_a_tenth_of_the_training_at_most(tmp_path: Path) -> None:
    found = sft_config(recipe(), tmp_path)
    assert (found.save_strategy, found.save_steps, found.save_total_limit) == ("steps", 0.1, 2)
    assert not found.load_best_model_at_end
    assert sft_config(recipe(trainer={"save_strategy": "no"}), tmp_path).save_strategy == "no"


@pytest.mark.parametrize(("by", "metric", "greater"), [("dev_loss", "eval_loss", False), ("dev_accuracy", "eval_accuracy", True)])
def test_every_checkpoint_that_may_be_selected_is_measured(by: str, metric: str, greater: bool, tmp_path: Path) -> None:
    for trainer in ({}, {"eval_strategy": "steps", "eval_steps": 50}, {"eval_strategy": "steps"}):
        found = sft_config(recipe(select_by=by, trainer=trainer), tmp_path)
        assert found.save_strategy == found.eval_strategy == trainer.get("eval_strategy", "epoch")
        assert found.save_strategy == "epoch" or found.save_steps == found.eval_steps
        assert (found.metric_for_best_model, found.greater_is_better, found.load_best_model_at_end) == (metric, greater, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the recipe asks for")
@pytest.mark.parametrize("asks", [{"bf16": True}, {"fp16": True}, {"use_cpu": False}])
def test_asking_for_a_gpu_that_is_not_there_is_refused(asks: dict, tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"asks for a GPU .* this machine has none"):
        sft_config(recipe(trainer=asks), tmp_path)


def test_presets_differ_in_stage_and_offload() -> None:
    for zero in (0, 1, 2, 3):
        assert deepspeed_config(zero)["zero_optimization"]["stage"] == zero
    offloaded = deepspeed_config("3-offload")["zero_optimization"]
    assert offloaded["stage"] == 3 and offloaded["offload_param"]["device"] == "cpu"
    assert offloaded["stage3_gather_16bit_weights_on_model_save"]


def test_a_raw_deepspeed_file_is_taken_as_it_is_and_a_broken_one_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "steps_per_print": 7}))
    assert deepspeed_config(str(path))["steps_per_print"] == 7
    path.write_text("{")
    with pytest.raises(PollardError, match=r"finetuning\.zero: cannot read the DeepSpeed configuration .*mine\.json"):
        deepspeed_config(str(path))
