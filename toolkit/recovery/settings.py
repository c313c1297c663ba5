"""The training arguments: what a recipe leaves open, and the check of what it says, before the first stage starts."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig

from toolkit.errors import PollardError, did_you_mean
from toolkit.recipe import Recipe
from toolkit.recovery.deepspeed import deepspeed_config
from toolkit.recovery.extension import build_communication
from toolkit.recovery.methods import LEARNING_RATES, check_method

# What the toolkit itself decides; a recipe that sets them would break a promise elsewhere.
OURS = {
    "output_dir": "name", "deepspeed": "finetuning.zero", "seed": "seed", "max_length": "finetuning.max_length",
    "completion_only_loss": None, "dataset_kwargs": None, "remove_unused_columns": None,
}  # fmt: skip


def sft_config(recipe: Recipe, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig for this recipe: our defaults under the recipe's `finetuning.trainer`.

    Raises PollardError naming every key SFTConfig does not have, every key that belongs elsewhere, and what SFTConfig
    itself refuses.
    """
    _check_keys(recipe.finetuning.trainer)
    gpu, dtype = torch.cuda.is_available(), recipe.model.dtype
    defaults: dict[str, Any] = {
        "learning_rate": LEARNING_RATES[recipe.finetuning.method],
        "num_train_epochs": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1: a share of all steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "logging_steps": 10,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "optim": "adamw_torch",
        "gradient_checkpointing": gpu,  # memory is what a GPU lacks, time what a CPU lacks
        "bf16": gpu and dtype in ("auto", "bfloat16"),
        "fp16": gpu and dtype == "float16",
        "use_cpu": not gpu,
        # The balancing loss spreads tokens evenly over experts: it works against the specialisation just selected.
        "router_aux_loss_coef": 0.0,
    }
    ours = {
        "output_dir": str(output_dir),
        "deepspeed": deepspeed_config(recipe.finetuning.zero),
        "seed": recipe.seed,
        "max_length": None,  # examples arrive tokenized, and those that are too long were left out and counted
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "completion_only_loss": False,  # the labels say already which tokens count
        "disable_tqdm": True,  # a progress line of our own
    }
    settings = defaults | recipe.finetuning.trainer | ours
    if not gpu and (settings["bf16"] or settings["fp16"] or not settings["use_cpu"]):
        raise PollardError(
            "finetuning.trainer asks for a GPU (bf16, fp16 or use_cpu: false), and this machine has none: "
            "leave those keys out, and float32 is used."
        )
    try:
        return SFTConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise PollardError(f"finetuning.trainer: SFTConfig refuses this: {error}") from None


def check_finetuning(recipe: Recipe, output_dir: Path) -> None:
    """Raises PollardError for what could be known to be wrong with the fine-tuning before the first stage starts."""
    check_method(recipe)
    build_communication()
    sft_config(recipe, output_dir)
    unset_hf_deepspeed_config()  # under ZeRO-3, the next model to be loaded would be partitioned


def _check_keys(trainer: dict[str, Any]) -> None:
    allowed = [field.name for field in dataclasses.fields(SFTConfig) if field.init]
    faults = []
    for key in trainer:
        if key in OURS:
            instead = f"set `{OURS[key]}` instead" if OURS[key] else "the toolkit sets it"
            faults.append(f"finetuning.trainer.{key} is not yours to set here: {instead}.")
        elif key not in allowed:
            faults.append(f"finetuning.trainer.{key} is not a field of trl's SFTConfig{did_you_mean(key, allowed)}")
    if faults:
        raise PollardError("\n".join(faults))
