"""Settings that are each right and cannot work together: refused before the first stage, with the reason."""

from typing import Any

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.runtime.zero import deepspeed_config

PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "dagshub": "dagshub mlflow", "flyte": "flytekit"}


def check_combinations(recipe: Recipe) -> None:
    """Raises PollardError naming everything that cannot work."""
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
            "finetuning.trainer.packing and padding_free need TRL's own preparation of the data; here examples arrive tokenized, "
            "each in a row of its own. Leave them out."
        )
    if faults:
        raise PollardError("\n".join(faults))


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
                f"finetuning.trainer.report_to: {name} is not installed: `pip install {PACKAGES.get(name, name)}`, "
                "or leave report_to out."
            )
    if faults:
        raise PollardError("\n".join(faults))
