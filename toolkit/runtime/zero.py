"""DeepSpeed: its configurations by ZeRO stage, and its start on CPU ranks.

Values `auto` of a configuration are filled in by transformers from the training arguments.
"""

import json
from pathlib import Path

import torch

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject

SHARED_MEMORY_MODULE = "deepspeed_shm_comm"


def deepspeed_config(zero: int | str) -> JsonObject:
    """The configuration for a preset (0, 1, 2, 3, "3-offload") or a JSON file; raises PollardError for a broken file."""
    if isinstance(zero, str) and zero.endswith(".json"):
        try:
            return json.loads(Path(zero).read_text())
        except (OSError, ValueError) as error:
            raise PollardError(
                f"finetuning.zero: cannot read the DeepSpeed configuration {zero}: {error}", code="zero.no-config"
            ) from None
    stage = int(str(zero)[0])
    optimization: JsonObject = {"stage": stage, "overlap_comm": stage > 1, "contiguous_gradients": True}
    if stage == 3:
        # Without it, ZeRO-3 silently writes a checkpoint of empty tensors
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


def partitioned_config(zero: int | str) -> JsonObject:
    """The `zero_optimization` section for inference with ZeRO-3: `finetuning.zero`'s if that is stage 3, else the preset's."""
    section = deepspeed_config(zero).get("zero_optimization", {})
    if section.get("stage") != 3:
        section = deepspeed_config(3)["zero_optimization"]
    # There is no optimizer here, and no trainer to fill in "auto"
    return {key: value for key, value in section.items() if key != "offload_optimizer" and value != "auto"}


def start_deepspeed() -> None:
    """Makes DeepSpeed join the process group of CPU ranks. To be called on every rank after `distributed.start`. Does nothing on
    GPUs.

    On CPUs, DeepSpeed would first compile a module for communication through shared memory: a minute, once per environment, a
    C++ compiler and Python's headers. Nothing here uses it: its one operation is that of tensor-parallel inference, training
    reduces through torch's gloo. So DeepSpeed is told that it cannot be compiled here.
    """
    if torch.cuda.is_available():
        return
    import deepspeed  # takes seconds

    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_MODULE] = False
    deepspeed.init_distributed("gloo", verbose=False)
