"""What fine-tuning does where a recipe's `finetuning.trainer` says nothing: fields of TRL's SFTConfig."""

from typing import Any

from toolkit.recipe.schema import Recipe

# LoRA learns best at about ten times the rate of full fine-tuning (LoRA Without Regret, Thinking Machines, 2025)
LEARNING_RATES = {"full": 2e-5, "experts": 2e-5, "router": 2e-5, "lora": 2e-4, "qlora": 2e-4}
# PEFT reads these names, wherever they stand, as the experts and router of transformers 4, and redirects them to the fused
# experts at twice the rank: dense layers' MLPs go without adapters
TAKEN_FOR_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
SHARE = 0.1  # of all steps: what a kill costs at most


def trainer_defaults(gpu: bool, recipe: Recipe) -> dict[str, Any]:
    """On a machine with or without a GPU."""
    dtype = recipe.model.dtype
    return {
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
        **_saving(recipe),
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "report_to": "none",
        "optim": "adamw_torch",
        "gradient_checkpointing": gpu,  # memory is what a GPU lacks, time what a CPU lacks
        "bf16": gpu and dtype in ("auto", "bfloat16"),
        "fp16": gpu and dtype == "float16",
        "use_cpu": not gpu,
        # The balancing loss spreads tokens evenly over experts: it works against the specialisation just selected.
        "router_aux_loss_coef": 0.0,
    }


def _saving(recipe: Recipe) -> dict[str, Any]:
    """A checkpoint every tenth of the training; where the best is looked for, one with every evaluation."""
    defaults: dict[str, Any] = {"save_strategy": "steps", "save_steps": SHARE, "save_total_limit": 2}
    if recipe.finetuning.select_by != "last":
        trainer = recipe.finetuning.trainer
        defaults |= {"save_strategy": trainer.get("eval_strategy", "epoch"), "eval_steps": SHARE}
        defaults["save_steps"] = trainer.get("eval_steps", SHARE)
    return defaults
