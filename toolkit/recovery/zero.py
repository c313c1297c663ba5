"""DeepSpeed configurations by name. `auto` values are filled in by transformers from the training arguments."""

import json
from pathlib import Path
from typing import Any

from toolkit.errors import PollardError


def deepspeed_config(zero: int | str) -> dict[str, Any]:
    """The configuration for a preset (0, 1, 2, 3, "3-offload") or a JSON file; raises PollardError for a broken file."""
    if isinstance(zero, str) and zero.endswith(".json"):
        try:
            return json.loads(Path(zero).read_text())
        except (OSError, ValueError) as error:
            raise PollardError(f"finetuning.zero: cannot read the DeepSpeed configuration {zero}: {error}") from None
    stage = int(str(zero)[0])
    optimization: dict[str, Any] = {"stage": stage, "overlap_comm": stage > 1, "contiguous_gradients": True}
    if stage == 3:
        # Without the gathering, ZeRO-3 writes a checkpoint of empty tensors, and says nothing.
        optimization["stage3_gather_16bit_weights_on_model_save"] = True
    if zero == "3-offload":
        optimization["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        optimization["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": optimization,
        # transformers brings the optimizer (AdamW, or bitsandbytes' 8-bit one), and it runs on CPU as it is
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def partitioning(zero: int | str) -> dict[str, Any]:
    """The `zero_optimization` section for a model that only answers: that of `finetuning.zero` where it is stage 3."""
    theirs = deepspeed_config(zero).get("zero_optimization", {})
    if theirs.get("stage") != 3:
        theirs = deepspeed_config(3)["zero_optimization"]
    # Nothing is optimized, and "auto" is for the trainer to fill in
    return {key: value for key, value in theirs.items() if key != "offload_optimizer" and value != "auto"}
