"""Write a model that no rank holds whole: layer by layer, each gathered, turned into the checkpoint's layout, written, let go.

`save_pretrained` wants all tensors at once, on rank 0. Here rank 0 holds one decoder layer and one file's worth of tensors.
"""

import json
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from toolkit.distributed import is_main, on_main
from toolkit.files import write_text
from toolkit.moe.checkpoint_files import INDEX, SINGLE
from toolkit.moe.partition import layer_of

FILE_BYTES = 5 * 10**9  # a file is closed when it has grown beyond


def write_partitioned(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights of `model`, under ZeRO-3, to `folder`, as transformers would; call it on every rank.

    What rank 0 cannot write, every rank raises.
    """
    files = Files(folder)
    tied = getattr(model, "all_tied_weights_keys", {})  # stored once, as in every stock checkpoint
    dropped = {*tied, *(model._keys_to_ignore_on_save or ())}
    tensors = model.state_dict(keep_vars=True)
    names = [name for name in tensors if name not in dropped]
    for _, layer in groupby(names, layer_of):
        whole = {name: tensor for name in layer if (tensor := gathered(tensors[name])) is not None}
        on_main(lambda whole=whole: files.add(revert_weight_conversion(model, whole)))  # type: ignore[misc]
    on_main(files.close)


def gathered(parameter: torch.Tensor) -> torch.Tensor | None:
    """A copy in rank 0's memory, None on the others. Every rank must call it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter] if hasattr(parameter, "ds_id") else []):
        return parameter.detach().to("cpu", copy=True).contiguous() if is_main() else None


class Files:
    """Safetensors files in a row, and their index."""

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
        """How many files there are is known now: they get their names, and an index where they are several."""
        self._write()
        count = len(self.written)
        names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else [SINGLE]
        for number, name in enumerate(names):
            self._partial(number).rename(self.folder / name)
        if count > 1:
            weight_map = {tensor: name for name, tensors in zip(names, self.written, strict=True) for tensor in tensors}
            total = sum(size for tensors in self.written for size in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
