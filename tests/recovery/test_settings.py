"""Laws: the recipe's fields win over the defaults, and everything wrong with them is refused before the first stage."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import raises

from toolkit.recipe.schema import Recipe
from toolkit.recovery.settings import check_combinations, check_trackers, sft_config
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
    keys = [f"finetuning.trainer.{key}" for key in ("learning_rat ", "output_dir", "deepspeed", "warmup_ratio")]
    with raises("recovery.trainer-keys", *keys, "`learning_rate`", "`finetuning.zero`", "`name`"):
        sft_config(recipe(trainer={"learning_rat": 1, "output_dir": "x", "deepspeed": "x.json", "warmup_ratio": 0.1}), tmp_path)


def test_what_sftconfig_itself_refuses_is_reported(tmp_path: Path) -> None:
    with raises("recovery.refused-arguments", "sometimes"):
        sft_config(recipe(trainer={"eval_strategy": "sometimes"}), tmp_path)


@pytest.mark.parametrize(
    ("trainer", "fault"),
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
def test_a_value_of_another_type_is_told_before_it_breaks_the_training(trainer: dict, fault: str, tmp_path: Path) -> None:
    with raises("recovery.trainer-keys", f"finetuning.trainer.{fault}"):
        sft_config(recipe(trainer=trainer), tmp_path)


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
    with raises("recovery.needs-gpu", "finetuning.trainer"):
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


# What cannot work together is refused before the first stage, with the reason and a way out.


@pytest.mark.parametrize(
    ("finetuning", "named"),
    [
        ({"zero": 3, "select_by": "dev_accuracy"}, "finetuning.select_by: dev_accuracy"),
        ({"zero": "3-offload", "select_by": "dev_accuracy"}, "finetuning.zero: 2"),
        ({"select_by": "dev_loss", "trainer": {"eval_strategy": "no"}}, "finetuning.trainer.eval_strategy"),
        (
            {"select_by": "dev_loss", "trainer": {"save_strategy": "no"}},
            "finetuning.select_by: dev_loss",
        ),
        ({"trainer": {"packing": True}}, "finetuning.trainer.packing"),
        ({"packing": True, "trainer": {"router_aux_loss_coef": 0.01}}, "finetuning.trainer.router_aux_loss_coef"),
        ({"packing": True, "trainer": {"per_device_train_batch_size": 1}}, "finetuning.trainer.per_device_train_batch_size"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(finetuning: dict, named: str) -> None:
    with raises("recovery.combination", named):
        check_combinations(recipe(**finetuning))


@pytest.mark.skipif(torch.cuda.is_available(), reason="pages work here")
@pytest.mark.parametrize(("optim", "instead"), [("paged_adamw_8bit", "adamw_bnb_8bit"), ("paged_adamw_32bit", "adamw_torch")])
def test_paged_optimizers_need_a_gpu(optim: str, instead: str) -> None:
    with raises("recovery.combination", f"finetuning.trainer.optim: {optim}", f"optim: {instead}."):
        check_combinations(recipe(trainer={"optim": optim}))


def test_everything_that_cannot_work_is_told_at_once() -> None:
    with raises("recovery.combination") as error:
        check_combinations(recipe(zero=3, select_by="dev_accuracy", trainer={"packing": True, "eval_strategy": "no"}))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("zero", [0, 1, 2, 3, "3-offload"])
@pytest.mark.parametrize("select_by", ["last", "dev_loss"])
def test_what_works_is_let_through(zero: int | str, select_by: str) -> None:
    check_combinations(
        recipe(zero=zero, select_by=select_by, trainer={"gradient_checkpointing": True, "optim": "adamw_bnb_8bit"})
    )


def test_a_tracker_that_is_not_installed_is_refused_with_the_command() -> None:
    missing = [name for name in ("tensorboard", "trackio", "wandb") if find_spec(name) is None]
    for name in missing:
        with raises("recovery.tracker", f"`pip install {name}`"):
            check_trackers([name])
    with raises("recovery.tracker", "tensorbord", "`tensorboard`"):
        check_trackers(["tensorbord"])
    check_trackers([])


def test_keys_that_select_by_decides_are_not_the_trainers(tmp_path: Path) -> None:
    with raises("recovery.trainer-keys", "load_best_model_at_end", "`finetuning.select_by`"):
        sft_config(recipe(trainer={"load_best_model_at_end": True}), tmp_path)
