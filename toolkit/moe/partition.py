"""A model under DeepSpeed ZeRO-3: every rank holds a part of each parameter, which is whole only while it is used.

`partitioned_model` loads one for inference. `write_partitioned` writes one that no rank holds whole, layer by layer: each is
gathered, turned into the checkpoint's layout, written and released, so that rank 0 holds one decoder layer and one file's worth
of tensors (`save_pretrained` wants all tensors at once).
"""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from toolkit.moe.load import load_config, load_model, resolve_dtype
from toolkit.moe.model_files import file_names, write_index
from toolkit.runtime.distributed import is_main, on_main


def is_partitioned(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def local_part(parameter: torch.Tensor) -> torch.Tensor:
    """The part of `parameter` that this rank holds, flat, without the padding after the last rank's; all of an unpartitioned
    one."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach().flatten()
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.ds_numel  # type: ignore[attr-defined]
    there: int = parameter.ds_numel - begin  # type: ignore[attr-defined]
    return part.flatten()[: max(there, 0)]


def layer_prefix(name: str) -> str:
    """The path of a parameter up to its layer's number; empty for one outside the layers."""
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

    number = resolve_dtype(dtype, load_config(path, revision)) or torch.float32
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


FILE_BYTES = 5 * 10**9  # a file is closed once it is larger


def write_partitioned(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights of `model`, under ZeRO-3, to `folder`, as transformers would; call it on every rank.

    What rank 0 cannot write, every rank raises.
    """
    files = ShardWriter(folder)
    tied = getattr(model, "all_tied_weights_keys", {})  # stored once, as in every stock checkpoint
    dropped = {*tied, *(model._keys_to_ignore_on_save or ())}
    tensors = model.state_dict(keep_vars=True)
    names = [name for name in tensors if name not in dropped]
    for _, layer in groupby(names, layer_prefix):
        whole = {name: tensor for name in layer if (tensor := gathered(tensors[name])) is not None}
        on_main(lambda whole=whole: files.add(revert_weight_conversion(model, whole)))  # type: ignore[misc]
    on_main(files.close)


def gathered(parameter: torch.Tensor) -> torch.Tensor | None:
    """A copy in rank 0's memory, None on the others. Every rank must call it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter] if hasattr(parameter, "ds_id") else []):
        return parameter.detach().to("cpu", copy=True).contiguous() if is_main() else None


class ShardWriter:
    """Writes tensors into numbered safetensors files, and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, torch.Tensor] = {}
        self.written: list[dict[str, int]] = []  # per file: names, and their bytes

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors |= tensors
        if sum(tensor.nbytes for tensor in self.tensors.values()) > FILE_BYTES:
            self._write()

    def _write(self) -> None:
        if self.tensors:
            contiguous = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
            save_file(contiguous, self._partial(len(self.written)), metadata={"format": "pt"})
            self.written.append({name: tensor.nbytes for name, tensor in self.tensors.items()})
            self.tensors = {}

    def _partial(self, number: int) -> Path:
        return self.folder / f"{number}.part"

    def close(self) -> None:
        """Gives the files their names, which hold how many there are, and writes an index for several."""
        self._write()
        count = len(self.written)
        names = file_names(count)
        for number, name in enumerate(names):
            self._partial(number).rename(self.folder / name)
        if count > 1:
            weight_map = {tensor: name for name, tensors in zip(names, self.written, strict=True) for tensor in tensors}
            total = sum(size for tensors in self.written for size in tensors.values())
            write_index(self.folder, total, dict(sorted(weight_map.items())))
