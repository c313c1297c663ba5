"""The training arguments: what a recipe leaves open, and every check of its fine-tuning before the first stage starts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from trl import SFTConfig

from toolkit.recipe.schema import Recipe
from toolkit.recovery.distillation import check_loss_alone
from toolkit.recovery.methods import METHODS
from toolkit.recovery.own_loss import OwnLoss
from toolkit.recovery.trainer_defaults import SFTArguments, trainer_defaults
from toolkit.recovery.zeros import check_zeros
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.runtime.zero import deepspeed_config
from toolkit.tasks import DataCache

# Fields that the toolkit sets, and the recipe key that decides them
SET_BY_POLLARD = {
    "output_dir": "name", "deepspeed": "finetuning.zero", "seed": "seed", "max_length": "finetuning.max_length",
    "completion_only_loss": None, "dataset_kwargs": None, "remove_unused_columns": None,
    "load_best_model_at_end": "finetuning.select_by", "metric_for_best_model": "finetuning.select_by",
    "greater_is_better": "finetuning.select_by", "resume_from_checkpoint": None, "save_only_model": None,
    "restore_callback_states_from_checkpoint": None,
}  # fmt: skip
TRACKER_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "dagshub": "dagshub mlflow", "flyte": "flytekit"}
METRICS = {"dev_loss": "eval_loss", "dev_accuracy": "eval_accuracy"}
POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def sft_config(recipe: Recipe, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig for this recipe: the toolkit's defaults, overridden by `finetuning.trainer`.

    Raises PollardError for keys that SFTConfig does not have or that belong elsewhere (all of them in one message),
    for combinations that cannot work, and for what SFTConfig itself refuses.
    """
    check_trainer_keys(recipe.finetuning.trainer)
    check_combinations(recipe)
    gpu = torch.cuda.is_available()
    fixed = {
        "output_dir": str(output_dir),
        "deepspeed": deepspeed_config(recipe.finetuning.zero),
        "seed": recipe.seed,
        "max_length": None,  # examples arrive tokenized, and those that are too long were left out and counted
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "completion_only_loss": False,  # the labels are masked already
        "disable_tqdm": True,  # replaced by ProgressLines
    }
    settings = trainer_defaults(gpu, recipe) | recipe.finetuning.trainer | best_checkpoint_settings(recipe) | fixed
    if not gpu and (settings["bf16"] or settings["fp16"] or not settings["use_cpu"]):
        raise PollardError(
            "finetuning.trainer asks for a GPU (bf16, fp16 or use_cpu: false), and this machine has none: "
            "leave those keys out, and float32 is used.",
            code="recovery.needs-gpu",
        )
    try:
        arguments = SFTConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise PollardError(f"finetuning.trainer: SFTConfig refuses this: {error}", code="recovery.refused-arguments") from None
    for key in ("teacher", "loss"):
        if getattr(recipe.finetuning, key):
            check_loss_alone(arguments, f"finetuning.{key}")
    return arguments


def finetuning_checks(recipe: Recipe, output_dir: Path, data: DataCache) -> list[Callable[[], None]]:
    """Independent checks of the fine-tuning, made before the first stage starts; each raises PollardError."""
    return [
        lambda: METHODS[recipe.finetuning.method].check(recipe),
        lambda: check_zeros(recipe, METHODS[recipe.finetuning.method]),
        lambda: check_trainer_keys(recipe.finetuning.trainer),
        lambda: check_combinations(recipe),
        lambda: _check_loss(recipe),
        lambda: _check_arguments(recipe, output_dir),
        lambda: _check_selection(recipe, data),
    ]


def _check_loss(recipe: Recipe) -> None:
    if recipe.finetuning.loss:
        OwnLoss(recipe.finetuning.loss)


def settings_to_read(recipe: Recipe, output_dir: Path) -> SFTConfig:
    """As `sft_config`, for who trains nothing: models that are loaded afterwards are not partitioned, as ZeRO-3 would have it."""
    try:
        return sft_config(recipe, output_dir)
    finally:
        unset_hf_deepspeed_config()


def _check_arguments(recipe: Recipe, output_dir: Path) -> None:
    check_trackers(list(settings_to_read(recipe, output_dir).report_to or ()))  # SFTConfig makes it a list


def _check_selection(recipe: Recipe, data: DataCache) -> None:
    if recipe.finetuning.select_by != "last" and not data.task(recipe.task).examples("dev"):
        raise PollardError(
            f"finetuning.select_by is {recipe.finetuning.select_by}, but the training data is too small for a dev slice: "
            "add examples, or say finetuning.select_by=last.",
            code="recovery.no-dev-slice",
        )


def check_trainer_keys(trainer: Mapping[str, Any]) -> None:
    """Raises PollardError naming every key of `finetuning.trainer` that SFTConfig does not have, that the toolkit sets, or
    whose value is of another type or out of range."""
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
        raise PollardError("\n".join(faults), code="recovery.trainer-keys")


def best_checkpoint_settings(recipe: Recipe) -> SFTArguments:
    """SFTConfig's fields for ending with the best checkpoint; none for `select_by: last`."""
    if recipe.finetuning.select_by == "last":
        return {}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": METRICS[recipe.finetuning.select_by],
        "greater_is_better": recipe.finetuning.select_by == "dev_accuracy",
        "restore_callback_states_from_checkpoint": True,  # how long early stopping has waited
    }


def check_combinations(recipe: Recipe) -> None:
    """Raises PollardError naming all settings that are right alone and cannot work together."""
    trainer, chosen = recipe.finetuning.trainer, recipe.finetuning.select_by
    zero = deepspeed_config(recipe.finetuning.zero).get("zero_optimization", {})
    faults = []
    if chosen == "dev_accuracy" and zero.get("stage") == 3:
        faults.append(
            "finetuning.select_by: dev_accuracy generates answers, and ZeRO-3 would gather the whole model for every token of "
            "them: say select_by: dev_loss, or finetuning.zero: 2."
        )
    if chosen != "last" and "no" in (trainer.get("eval_strategy"), trainer.get("save_strategy")):
        faults.append(
            f"finetuning.select_by: {chosen} chooses among checkpoints measured on the dev slice: it needs "
            "finetuning.trainer.eval_strategy and save_strategy (steps or epoch, both alike)."
        )
    paged = str(trainer.get("optim", "")).startswith("paged_")
    if paged and not torch.cuda.is_available():
        faults.append(
            f"finetuning.trainer.optim: {trainer['optim']} pages between GPU and host, and this machine has no GPU (it would "
            "train as plain AdamW): "
            f"say optim: {'adamw_bnb_8bit' if '8bit' in trainer['optim'] else 'adamw_torch'}."
        )
    if trainer.get("packing") or trainer.get("padding_free"):
        faults.append(
            "finetuning.trainer.packing and padding_free need TRL's own preparation of the data, and here examples arrive "
            "tokenized: leave them out. finetuning.packing: true does without padding, whatever the attention."
        )
    if recipe.finetuning.packing and trainer.get("router_aux_loss_coef"):
        faults.append(
            "finetuning.packing leaves a little padding at the end of rows, and finetuning.trainer.router_aux_loss_coef would "
            "balance it over the experts: leave one of them out."
        )
    if recipe.finetuning.packing and trainer.get("per_device_train_batch_size") == 1:
        faults.append(
            "finetuning.packing puts the examples of a batch into fewer rows, and finetuning.trainer.per_device_train_batch_size "
            "is 1: say more and, for as many examples a step as before, fewer gradient_accumulation_steps; or leave packing out."
        )
    if faults:
        raise PollardError("\n".join(faults), code="recovery.combination")


def check_trackers(names: list[str]) -> None:
    """Raises PollardError for a `report_to` that transformers does not know, or whose package is not installed."""
    faults = []
    installed: Any = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            faults.append(
                f"finetuning.trainer.report_to: {name} is no tracker{did_you_mean(name, list(INTEGRATION_TO_CALLBACK))}"
            )
        elif name not in installed:
            faults.append(
                f"finetuning.trainer.report_to: {name} is not installed: `pip install {TRACKER_PACKAGES.get(name, name)}`, "
                "or leave report_to out."
            )
    if faults:
        raise PollardError("\n".join(faults), code="recovery.tracker")
