"""Is the loaded model the checkpoint's? Releases of transformers have left experts as they were initialised, in silence.

Loading renames, merges, transposes and fuses tensors, casts them, and under ZeRO-3 cuts them into parts. None of that
changes the sum of squares over a decoder layer. (Nor does the order of experts: what is caught are weights that did not
arrive, arrived in part, or are others.)
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from toolkit.moe.checkpoint_files import checkpoint_files
from toolkit.moe.load import checkpoint_folder, load_config, quantization_of
from toolkit.moe.names import Names
from toolkit.moe.partition import layer_of, own_part
from toolkit.moe.tensor_files import stored_tensors
from toolkit.runtime.distributed import gather, say, shard
from toolkit.runtime.errors import PollardError

PIECE = 2**24  # elements squared at a time: 128 MiB in float64
ROUNDING = 1e-9  # relative; float64 sums of the same numbers in another order
OUTSIDE = "outside its layers"


def check_loaded(model: PreTrainedModel, path: str, revision: str | None = None) -> None:
    """Call it on every rank, right after loading: ranks share the reading of the files, tensor by tensor.

    Raises PollardError naming the layers whose weights are not those of the checkpoint at `path`. Left unchecked, which is
    said, are quantized checkpoints, whose numbers are computed while they load, those without safetensors files, and
    parts that DeepSpeed has moved to a disk.
    """
    moved = any(getattr(getattr(p, "ds_tensor", None), "final_location", None) == "nvme" for p in model.parameters())
    quantized = quantization_of(load_config(path, revision))  # of the files: a dequantized model no longer says so
    files = {} if quantized or moved else _files(path, revision)
    if not files:
        say("  loaded weights are not compared with the checkpoint: it is quantized, without safetensors files, or on NVMe")
        return
    of_files, of_model = _sums_of_files(model, files), _sums_of_model(model)
    sums = [(group, found, of_files.get(group, 0.0)) for group, found in of_model.items()]
    mine = [each for each in sums if not math.isclose(each[1], each[2], rel_tol=ROUNDING)]  # a copy of a rank's own may differ
    wrong = [each for found in gather(mine) for each in found]
    if wrong:
        groups = list(dict.fromkeys(group for group, _, _ in wrong))
        more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
        group, loaded, written = wrong[0]
        raise PollardError(
            f"The model was loaded, but its weights are not those in {path}: {', '.join(groups[:5])}{more} (sum of squares of "
            f"{group}: {loaded:.9g} loaded, {written:.9g} in the files). Is a file damaged? Does the installed transformers load "
            "this family wrongly under ZeRO-3? Compare with finetuning.zero=2, and please report it."
        )


def _files(path: str, revision: str | None) -> dict[str, Path]:
    """The tensors of a checkpoint (a folder, or one of the hub's, which is downloaded already), and their files."""
    folder = checkpoint_folder(path, revision)
    if not checkpoint_files(folder).safetensors:
        return {}
    return {name: tensor.file for name, tensor in stored_tensors(folder).items()}


def _sums_of_model(model: PreTrainedModel) -> dict[str, float]:
    """Per layer, each parameter and stored buffer once; every rank adds its part where the model is in parts."""
    mine: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    for name, tensor in _stored(model).items():
        (mine if hasattr(tensor, "ds_id") else whole)[_group_of(name)] += sum_of_squares(own_part(tensor))
    return _added(mine, whole)


def _sums_of_files(model: PreTrainedModel, files: Mapping[str, Path]) -> dict[str, float]:
    """The same, of what the files hold of it, in the model's dtype."""
    stored, saved = _stored(model), model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in stored.items()}
    home = Names(model).home
    found: dict[str, str] = {}
    first: dict[str, str] = {}  # of a tied pair that is stored twice, one counts
    for key in sorted(files):
        name = home(key).parameters[0]
        if name in saved and first.setdefault(names[id(saved[name])], name) == name:
            found[key] = names[id(saved[name])]
    mine: dict[str, float] = defaultdict(float)
    for key in shard(list(found)):
        with safe_open(files[key], framework="pt") as tensors:
            mine[_group_of(found[key])] += sum_of_squares(tensors.get_tensor(key), stored[found[key]].dtype)
    return _added(mine, {})


def _stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers that a checkpoint holds, of tied ones the first."""
    saved = model.state_dict(keep_vars=True)
    everything = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in everything if name in saved}


def _group_of(name: str) -> str:
    return layer_of(name) or OUTSIDE


def sum_of_squares(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> float:
    """In float64, a piece at a time, as if cast to `dtype` first."""
    pieces = tensor.detach().flatten().split(PIECE)
    return math.fsum(piece.to(dtype or piece.dtype).double().square().sum().item() for piece in pieces)


def _added(mine: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """All ranks' parts together, and what every rank has for itself."""
    everyone = gather(dict(mine))
    groups = dict.fromkeys([*(group for part in everyone for group in part), *whole])
    return {group: math.fsum([part.get(group, 0.0) for part in everyone] + [whole.get(group, 0.0)]) for group in groups}
