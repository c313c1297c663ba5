"""What fine-tuning does where a recipe's `finetuning.trainer` says nothing: fields of TRL's SFTConfig."""

from typing import Any

from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS

SFTArguments = dict[str, Any]  # fields of TRL's SFTConfig, by name
SAVE_INTERVAL = 0.1  # of all steps: what a kill costs at most


def trainer_defaults(gpu: bool, recipe: Recipe) -> SFTArguments:
    """On a machine with or without a GPU."""
    dtype = recipe.model.dtype
    return {
        "learning_rate": METHODS[recipe.finetuning.method].learning_rate,
        "num_train_epochs": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1: a part of all steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "logging_steps": 10,
        "eval_strategy": "epoch",
        **_saving(recipe),
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "report_to": "none",
        "optim": "adamw_torch",
        "gradient_checkpointing": gpu,  # memory is what a GPU lacks, time what a CPU lacks
        "bf16": gpu and dtype in ("auto", "bfloat16"),
        "fp16": gpu and dtype == "float16",
        "use_cpu": not gpu,
        # The balancing loss spreads tokens evenly over experts: it works against the specialisation just selected.
        "router_aux_loss_coef": 0.0,
    }


def _saving(recipe: Recipe) -> SFTArguments:
    """A checkpoint every tenth of the training; where the best one is selected, one with every evaluation."""
    defaults: SFTArguments = {"save_strategy": "steps", "save_steps": SAVE_INTERVAL, "save_total_limit": 2}
    if recipe.finetuning.select_by != "last":
        trainer = recipe.finetuning.trainer
        defaults |= {"save_strategy": trainer.get("eval_strategy", "epoch"), "eval_steps": SAVE_INTERVAL}
        defaults["save_steps"] = trainer.get("eval_steps", SAVE_INTERVAL)
    return defaults
