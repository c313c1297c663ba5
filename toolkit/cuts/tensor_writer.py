"""Write the tensors of a new model into a checkpoint's files: what goes where, written whole or not at all, and read back.

    model-00001-of-00003.safetensors    what stands outside the decoder layers, model.layers.0., model.layers.1.
    model-00002-of-00003.safetensors    model.layers.2., …

Where bytes are copied from another checkpoint, `writer.py` does it without tensors.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from toolkit.cuts.apply import shapes_of
from toolkit.moe.load import load_config, meta_model
from toolkit.moe.model_files import file_names
from toolkit.moe.names import NameResolver
from toolkit.moe.partition import layer_prefix
from toolkit.moe.tensor_files import stored_tensors
from toolkit.runtime.errors import PollardError

FILE_BYTES = 10**9  # of a file, unless one layer is larger: what a rank holds beside the layer that it reads


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model; tied tensors once."""
    dropped = {*getattr(model, "all_tied_weights_keys", {}), *(model._keys_to_ignore_on_save or ())}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in dropped}


def part_of(name: str, layers_path: str) -> str:
    """The prefix of the decoder layer that a tensor is of ("model.layers.3."); "" outside of `layers_path`."""
    prefix = layer_prefix(name)
    return f"{prefix}." if prefix.rpartition(".")[0] == layers_path else ""


def part_sizes(model: PreTrainedModel, layers_path: str, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part of a model (`part_of`) in `dtype`."""
    sizes: dict[str, int] = {}
    for name, tensor in saved_tensors(model).items():
        part = part_of(name, layers_path)
        sizes[part] = sizes.get(part, 0) + math.prod(tensor.shape) * dtype.itemsize
    return sizes


def parts_by_file(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Which parts each file holds: FILE_BYTES together, unless one is larger."""
    packed: list[list[str]] = [[]]
    for prefix, size in sizes.items():
        if packed[-1] and sum(sizes[each] for each in packed[-1]) + size > FILE_BYTES:
            packed.append([])
        packed[-1].append(prefix)
    return dict(zip(file_names(len(packed)), packed, strict=True))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Whole or not at all; read back and compared."""
    unfinished = path.with_name(path.name + ".tmp")
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, unfinished, metadata={"format": "pt"})
    with safe_open(unfinished, framework="pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(file.get_tensor(name), tensor.cpu()):
                raise PollardError(
                    f"{name} in {path} is not what was written there: is the disk sound? The same command writes it again.",
                    code="prune.file-damaged",
                )
    unfinished.replace(path)


def difference(folder: Path, model: PreTrainedModel) -> str | None:
    """What a folder's configuration describes, or its files hold, that is not `model` (which may be without weights)."""
    described, expected = shapes_of(meta_model(load_config(str(folder)))), shapes_of(model)
    if described != expected:
        wrong = sorted(name for name in described.keys() | expected.keys() if described.get(name) != expected.get(name))
        return f"its configuration describes another model ({', '.join(wrong[:3])})"
    names = NameResolver(model)
    strangers = [key for key in stored_tensors(folder) if not {*names.destination(key).parameters} <= expected.keys()]
    return f"it holds tensors that are none of its own ({', '.join(strangers[:3])})" if strangers else None


def stored_files(folder: Path, files: list[str]) -> dict[str, str]:
    """By tensor the file that holds it."""
    found: dict[str, str] = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), name)
    return dict(sorted(found.items()))
