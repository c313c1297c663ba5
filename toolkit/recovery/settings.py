"""The training arguments: what a recipe leaves open, and the check of what it says, before the first stage starts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig

from toolkit.recipe.schema import Recipe
from toolkit.recipe.trainer_defaults import trainer_defaults
from toolkit.recovery.combinations import check_combinations, check_trackers
from toolkit.recovery.distillation import check_distillable
from toolkit.recovery.methods import check_method
from toolkit.recovery.selection import selection
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.runtime.zero import build_communication, deepspeed_config
from toolkit.tasks import DataCache

# What the toolkit itself decides; a recipe that sets them would break a promise elsewhere.
SET_BY_POLLARD = {
    "output_dir": "name", "deepspeed": "finetuning.zero", "seed": "seed", "max_length": "finetuning.max_length",
    "completion_only_loss": None, "dataset_kwargs": None, "remove_unused_columns": None,
    "load_best_model_at_end": "finetuning.select_by", "metric_for_best_model": "finetuning.select_by",
    "greater_is_better": "finetuning.select_by", "resume_from_checkpoint": None, "save_only_model": None,
    "restore_callback_states_from_checkpoint": None,
}  # fmt: skip
POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def sft_config(recipe: Recipe, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig for this recipe: our defaults under the recipe's `finetuning.trainer`.

    Raises PollardError naming every key SFTConfig does not have, every key that belongs elsewhere, and what SFTConfig
    itself refuses.
    """
    _check_keys(recipe.finetuning.trainer)
    check_combinations(recipe)
    gpu = torch.cuda.is_available()
    ours = {
        "output_dir": str(output_dir),
        "deepspeed": deepspeed_config(recipe.finetuning.zero),
        "seed": recipe.seed,
        "max_length": None,  # examples arrive tokenized, and those that are too long were left out and counted
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "completion_only_loss": False,  # the labels say already which tokens count
        "disable_tqdm": True,  # a progress line of our own
    }
    settings = trainer_defaults(gpu, recipe) | recipe.finetuning.trainer | selection(recipe) | ours
    if not gpu and (settings["bf16"] or settings["fp16"] or not settings["use_cpu"]):
        raise PollardError(
            "finetuning.trainer asks for a GPU (bf16, fp16 or use_cpu: false), and this machine has none: "
            "leave those keys out, and float32 is used."
        )
    try:
        arguments = SFTConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise PollardError(f"finetuning.trainer: SFTConfig refuses this: {error}") from None
    if recipe.finetuning.teacher:
        check_distillable(arguments)
    return arguments


def finetuning_checks(recipe: Recipe, output_dir: Path, data: DataCache) -> list[Callable[[], None]]:
    """What could be known to be wrong with the fine-tuning before the first stage starts: each raises PollardError for its
    own part."""
    return [
        lambda: check_method(recipe),
        lambda: _check_keys(recipe.finetuning.trainer),
        lambda: check_combinations(recipe),
        lambda: _check_arguments(recipe, output_dir),
        lambda: _check_selection(recipe, data),
        build_communication,
    ]


def _check_arguments(recipe: Recipe, output_dir: Path) -> None:
    try:
        arguments = sft_config(recipe, output_dir)
    finally:
        unset_hf_deepspeed_config()  # under ZeRO-3, the next model to be loaded would be partitioned
    check_trackers(list(arguments.report_to or ()))  # SFTConfig makes it a list


def _check_selection(recipe: Recipe, data: DataCache) -> None:
    if recipe.finetuning.select_by != "last" and not data.task(recipe.task).examples("dev"):
        raise PollardError(
            f"finetuning.select_by is {recipe.finetuning.select_by}, but the training data is too small for a dev slice: "
            "add examples, or say finetuning.select_by=last."
        )


def _check_keys(trainer: dict[str, Any]) -> None:
    allowed = [field.name for field in dataclasses.fields(SFTConfig) if field.init]
    types = get_type_hints(SFTConfig)
    faults = []
    for key, value in trainer.items():
        if key in SET_BY_POLLARD:
            instead = f"set `{SET_BY_POLLARD[key]}` instead" if SET_BY_POLLARD[key] else "the toolkit sets it"
            faults.append(f"finetuning.trainer.{key} is not yours to set here: {instead}.")
        elif key not in allowed:
            faults.append(f"finetuning.trainer.{key} is not a field of trl's SFTConfig{did_you_mean(key, allowed)}")
        else:
            try:  # SFTConfig itself takes anything, and breaks when it is used
                TypeAdapter(types[key]).validate_python(value)
            except ValidationError as error:
                what = error.errors()[0]["msg"].removeprefix("Input should be ")
                faults.append(f"finetuning.trainer.{key} must be {what} (given: {value!r}).")
                continue
            if (key in POSITIVE and float(value) < 1) or (key == "learning_rate" and float(value) < 0):
                faults.append(
                    f"finetuning.trainer.{key} must be {'1 or more' if key in POSITIVE else 'positive'} (given: {value!r})."
                )
    if not faults and float(trainer.get("max_steps", 0)) <= 0 and float(trainer.get("num_train_epochs", 1)) <= 0:
        faults.append(
            f"finetuning.trainer.num_train_epochs is {trainer['num_train_epochs']!r}: nothing would be trained. Give a number "
            "above 0, or leave `recovered` out of evaluation.models."
        )
    if faults:
        raise PollardError("\n".join(faults))
