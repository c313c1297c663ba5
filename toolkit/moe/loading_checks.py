"""Two checks of loading: did the loaded model get the checkpoint's weights, and does a written folder open in stock transformers?

`check_loaded`: releases of transformers have left experts as they were initialised, in silence. Loading renames, merges,
transposes and fuses tensors, casts them, and under ZeRO-3 cuts them into parts. None of that changes the sum of squares over a
decoder layer. (Nor does the order of experts: it catches weights that did not arrive, arrived in part, or are others.)

`check_opens`: configuration, tokenizer and generation settings of a written folder are opened as they are. So is the model,
without keeping its weights, where reading them once more is quick; of a larger one, transformers' loader gets the names and
shapes that the files' headers give, which is all that can be wrong with weights whose bytes are checked elsewhere.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from toolkit.moe.load import auto_class, checkpoint_folder, load_config, meta_model, quantization_of
from toolkit.moe.model_files import CheckpointFiles, checkpoint_files
from toolkit.moe.names import NameResolver
from toolkit.moe.partition import layer_prefix, local_part
from toolkit.moe.stream import without_progress_bars
from toolkit.moe.tensor_files import stored_tensors
from toolkit.runtime.distributed import gather, say, shard
from toolkit.runtime.errors import PollardError

PIECE = 2**24  # elements squared at a time: 128 MiB in float64
ROUNDING = 1e-9  # relative; float64 sums of the same numbers in another order
OUTSIDE = "outside its layers"


def check_loaded(model: PreTrainedModel, path: str, revision: str | None = None) -> None:
    """Call it on every rank, right after loading: ranks share the reading of the files, tensor by tensor.

    Raises PollardError naming the layers whose weights are not those of the checkpoint at `path`. Left unchecked, which a
    line reports, are quantized checkpoints, whose numbers are computed while they load, those without safetensors files, and
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
            "this family wrongly under ZeRO-3? Compare with finetuning.zero=2, and please report it.",
            code="model.other-weights",
        )


def _files(path: str, revision: str | None) -> dict[str, Path]:
    """The tensors of a checkpoint (a folder, or one of the hub's, which is downloaded already), and their files."""
    folder = checkpoint_folder(path, revision)
    if not checkpoint_files(folder).safetensors:
        return {}
    return {name: tensor.file for name, tensor in stored_tensors(folder).items()}


def _sums_of_model(model: PreTrainedModel) -> dict[str, float]:
    """Sums of squares per layer, each parameter and stored buffer once; every rank adds its part where the model is in parts."""
    mine: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    for name, tensor in _stored(model).items():
        (mine if hasattr(tensor, "ds_id") else whole)[_group_of(name)] += sum_of_squares(local_part(tensor))
    return _added(mine, whole)


def _sums_of_files(model: PreTrainedModel, files: Mapping[str, Path]) -> dict[str, float]:
    """The sums per layer of what the files hold of the model, in its dtype."""
    stored, saved = _stored(model), model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in stored.items()}
    resolver = NameResolver(model)
    found: dict[str, str] = {}
    first: dict[str, str] = {}  # of a tied pair that is stored twice, one counts
    for key in sorted(files):
        name = resolver.destination(key).parameters[0]
        if name in saved and first.setdefault(names[id(saved[name])], name) == name:
            found[key] = names[id(saved[name])]
    mine: dict[str, float] = defaultdict(float)
    for key in shard(list(found)):
        with safe_open(files[key], framework="pt") as tensors:
            mine[_group_of(found[key])] += sum_of_squares(tensors.get_tensor(key), stored[found[key]].dtype)
    return _added(mine, {})


def _stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers that a checkpoint holds; of tied ones the first."""
    saved = model.state_dict(keep_vars=True)
    everything = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in everything if name in saved}


def _group_of(name: str) -> str:
    return layer_prefix(name) or OUTSIDE


def sum_of_squares(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> float:
    """The sum of squares in float64, a piece at a time, as if cast to `dtype` first."""
    pieces = tensor.detach().flatten().split(PIECE)
    return math.fsum(piece.to(dtype or piece.dtype).double().square().sum().item() for piece in pieces)


def _added(mine: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """The sum over ranks of `mine`, plus `whole`, which every rank has alike."""
    everyone = gather(dict(mine))
    groups = dict.fromkeys([*(group for part in everyone for group in part), *whole])
    return {group: math.fsum([part.get(group, 0.0) for part in everyone] + [whole.get(group, 0.0)]) for group in groups}


READ_AGAIN = 2 * 10**9  # bytes of weights


def check_opens(folder: Path, source: Path) -> None:
    """Raises PollardError where transformers cannot open what is written in `folder`, or finds tensors missing or of another
    shape there. A tokenizer or generation settings that it cannot open in `source`, the checkpoint that it was made of, are
    no error; a model is. Quantized weights are not opened: their methods need packages and GPUs of their own.

    Not under ZeRO-3, which would partition the model that is opened.
    """
    config = _opened("config.json", lambda: AutoConfig.from_pretrained(folder), folder)
    openers: dict[str, Callable[[Path], Any]] = {
        "the tokenizer": lambda path: AutoTokenizer.from_pretrained(path, trust_remote_code=False),
        "generation_config.json": GenerationConfig.from_pretrained,
    }
    for part, opener in openers.items():
        try:
            opener(folder)
        except Exception:
            if _opens(opener, source):
                _opened(part, lambda opener=opener: opener(folder), folder)  # type: ignore[misc]
    if quantization_of(config):
        return
    try:
        found = _loaded(folder)
    except Exception as error:
        if not _opens(_loaded, source):
            raise PollardError(
                f"transformers cannot open {source}, and so not what is made of it: {_first_line(error)}. Put that right there.",
                code="checkpoint.source-does-not-open",
            ) from error
        raise PollardError(_cannot(folder, "the model", _first_line(error)), code="checkpoint.does-not-open") from error
    wrong = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"]), *found["error_msgs"]])
    if wrong:
        raise PollardError(
            _cannot(folder, "the model", f"{len(wrong)} of its tensors are missing or of another shape: {wrong[0]}"),
            code="checkpoint.does-not-open",
        )


class LoadingInfo(TypedDict):
    """What transformers reports of a loading; of its keys those that are used."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]  # name, shape in the files, shape in the model
    error_msgs: list[str]


def _loaded(folder: Path) -> LoadingInfo:
    """What transformers reports of loading the model: in full, or from the headers of its files."""
    files, config = checkpoint_files(folder), AutoConfig.from_pretrained(folder)
    if sum(file.stat().st_size for file in files.weights) > READ_AGAIN:
        return _by_headers(files, config)
    with without_progress_bars():
        return auto_class(type(config)).from_pretrained(folder, device_map="meta", output_loading_info=True)[1]


def _by_headers(files: CheckpointFiles, config: Any) -> LoadingInfo:
    tensors = {}
    for file in files.weights:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                shape = stored.get_slice(name).get_shape()
                nothing = stored.get_slice(name)[:0] if shape else stored.get_tensor(name)
                tensors[name] = torch.empty(shape, dtype=nothing.dtype, device="meta")
    model: Any = meta_model(config)
    with without_progress_bars():
        return type(model).from_pretrained(
            None, config=model.config, state_dict=tensors, device_map="meta", output_loading_info=True
        )[1]


def _opens(opener: Callable[[Path], Any], folder: Path) -> bool:
    try:
        opener(folder)
    except Exception:  # whatever is wrong with it was so before
        return False
    return True


def _opened(part: str, opener: Callable[[], Any], folder: Path) -> Any:
    try:
        return opener()
    except Exception as error:  # of any library
        raise PollardError(_cannot(folder, part, _first_line(error)), code="checkpoint.does-not-open") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def _cannot(folder: Path, part: str, why: str) -> str:
    return f"transformers cannot open {part} of what was written to {folder}: {why}. Please report this."
