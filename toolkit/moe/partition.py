"""A model under DeepSpeed ZeRO-3: every rank holds a part of each parameter, which is whole only while it is used."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from toolkit.moe.load import load_config, load_model, number_type


def is_partitioned(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def own_part(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `parameter`, flat and without the padding behind the last rank's: all of a whole one."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach().flatten()
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.ds_numel  # type: ignore[attr-defined]
    there: int = parameter.ds_numel - begin  # type: ignore[attr-defined]
    return part.flatten()[: max(there, 0)]


def layer_of(name: str) -> str:
    """The path of a parameter as far as its layer's number; nothing for one outside the layers."""
    layer = re.match(r".*?\.\d+(?=\.)", name)
    return layer.group() if layer else ""


@contextmanager
def partitioned_model(
    path: str, revision: str | None, dtype: str, zero_optimization: dict[str, Any], skipping: bool = True
) -> Iterator[PreTrainedModel]:
    """The model for inference, in parts on all ranks from loading on; all ranks must take part in every forward pass.

    `zero_optimization` is that section of a DeepSpeed configuration, of stage 3. While loading, rank 0 maps the checkpoint's
    files into memory and hands out one fused tensor at a time. `skipping` as for `load_model`.
    """
    import deepspeed

    number = number_type(dtype, load_config(path, revision)) or torch.float32
    config = {
        "train_micro_batch_size_per_gpu": 1,  # required; nothing is trained
        "zero_optimization": zero_optimization,
        "bf16": {"enabled": number == torch.bfloat16},
        "fp16": {"enabled": number == torch.float16},
    }
    kept = HfDeepSpeedConfig(config)  # transformers partitions what it loads, and keeps `generate` in step, as long as this lives
    engine = None
    try:
        model = load_model(path, revision, dtype, skipping=skipping)
        engine, *_ = deepspeed.initialize(model=model, config=kept.config)
        yield engine.module.eval()
    finally:
        unset_hf_deepspeed_config()
        if engine is not None:
            engine.destroy()
        model = engine = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
