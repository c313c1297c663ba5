"""What fine-tuning does where a recipe's `finetuning.trainer` says nothing: fields of TRL's SFTConfig."""

from typing import Any


def trainer_defaults(gpu: bool, dtype: str) -> dict[str, Any]:
    """On a machine with or without a GPU; `dtype` is the recipe's `model.dtype`."""
    return {
        "learning_rate": 2e-5,
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
