"""Which checkpoint becomes the result: the trainer's settings for it."""

from typing import Any

from transformers import EarlyStoppingCallback

from toolkit.recipe.schema import Recipe

METRICS = {"dev_loss": "eval_loss", "dev_accuracy": "eval_accuracy"}


def selection(recipe: Recipe) -> dict[str, Any]:
    """Makes the trainer end with the best checkpoint, where one is to be selected."""
    if recipe.finetuning.select_by == "last":
        return {}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": METRICS[recipe.finetuning.select_by],
        "greater_is_better": recipe.finetuning.select_by == "dev_accuracy",
        "restore_callback_states_from_checkpoint": True,  # how long early stopping has waited
    }


def stopping(recipe: Recipe) -> list[EarlyStoppingCallback]:
    patience = recipe.finetuning.early_stopping
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []
