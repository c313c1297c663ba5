"""Which files of a checkpoint folder are the model, and which belong to it without being weights.

Weights: those that transformers reads, in its order, and no others.

    config.json: "transformers_weights": "…"     where it says so, that file or index and nothing else
    model.safetensors                            else this one, even where the folder has an index, too
    model.safetensors.index.json                 else the files that it names
    pytorch_model.bin, pytorch_model.bin.index.json

Whatever reads, counts, copies or compares weights uses `checkpoint_files`. Other weights in the folder (an index that is not
read, files of an earlier save, variants, consolidated files) are no part of the model. `fetch` brings a checkpoint from the hub:
of the weights those files that transformers reads, and all that is no weights.

Companions: tokenizer, chat templates, processors, the code that `auto_map` names, licence, … Every checkpoint that is written,
by whatever method, gets the same: all files of the folder, byte for byte, but for weights, adapters, config.json (which is
written anew), hidden and temporary files, and what Pollard itself left of another model; of folders, those of chat templates
and of Python packages.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from toolkit.moe.expert_skipping import SKIPPING_FILE
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.signed_folders import PROVENANCE

SINGLE, INDEX = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".tflite", ".ot",
    ".nemo", ".mlmodel",
)  # fmt: skip
TRAINING_STATE_FILES = (
    "optimizer",
    "scheduler",
    "rng_state",
    "training_args",
    "scaler",
    "random_states",
)  # its state, no weights
RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # written by transformers for a distributed model


class CheckpointFiles(NamedTuple):
    """The weights of a checkpoint folder."""

    weights: tuple[Path, ...]  # in the order they are read: of a tensor that is in two files, the later one counts
    index_file: Path | None  # the index that names them
    unread: tuple[str, ...]  # weights and indices in the folder that are no part of the model

    @property
    def safetensors(self) -> bool:
        """Whether the weights are there, and in safetensors files."""
        return bool(self.weights) and all(file.suffix == ".safetensors" for file in self.weights)


def checkpoint_files(folder: str | Path) -> CheckpointFiles:
    """The files that transformers reads of a local folder, which may be none.

    Raises PollardError for an adapter in the folder, a damaged index, and a choice that cannot be followed.
    """
    folder = Path(folder)
    check_no_adapter(str(folder))
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    if part := next((name for name in there if RANK_SHARD.fullmatch(name)), None):
        raise PollardError(
            f"{folder} holds a model as its ranks saved it in parts ({part}, …). Load it with transformers and save it again "
            "(save_pretrained), or take those files away if they are old.",
            code="checkpoint.saved-in-parts",
        )
    if named := named_by_config(folder):
        if not (folder / named).is_file():
            raise PollardError(
                f"{folder / 'config.json'} says `transformers_weights`: {named}, and there is no such file. Fetch it, or take "
                "that key out.",
                code="checkpoint.named-weights-missing",
            )
        first = named
    else:
        first = next((name for name in (SINGLE, INDEX, WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if name in there), "")
    index = folder / first if first.endswith(".index.json") else None
    names = sorted(set(read_index(index).values())) if index else [first] * bool(first)
    used = {first, *names}
    unread = tuple(name for name in there if name not in used and is_weights(name) and not name.startswith(TRAINING_STATE_FILES))
    return CheckpointFiles(tuple(folder / name for name in names), index, unread)


def read_index(path: Path) -> dict[str, str]:
    """Tensors by name, with the file that holds each. Raises PollardError for a file that is no index."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise ValueError("weight_map does not name files")
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PollardError(f"{path} is damaged ({error!r}). Fetch it again.", code="checkpoint.damaged-index") from None


def file_names(count: int) -> list[str]:
    """What transformers calls the safetensors files of a checkpoint of so many."""
    return [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else [SINGLE]


def write_index(folder: Path, total_bytes: int, weight_map: Mapping[str, str]) -> None:
    """Writes which file holds which tensor, for a checkpoint of several."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def is_weights(name: str) -> bool:
    """Whether a file of that name holds tensors, in whatever format, or says where they are."""
    return name.endswith(SUFFIXES) or re.search(r"\.index(\.\w+)?\.json$", name) is not None


def named_by_config(folder: Path) -> str:
    """The file or index that config.json says the weights are in; nothing where it does not say."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config.get("transformers_weights") or "")
    except (OSError, ValueError, AttributeError, RecursionError):  # explained where the configuration is opened
        return ""


@cache
def report_unread_weights(folder: str) -> None:
    """Prints a line, once per folder, where it has weights that are no part of its model. Raises PollardError where it has only
    such."""
    files = checkpoint_files(folder)
    if files.weights and files.unread:
        read = files.index_file or files.weights[0]
        say(f"  {folder}: the model is {read.name}, as transformers reads it; not read: {_shown(files.unread)}")
    elif files.unread:
        raise UnreadWeightsError(folder, files.unread)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


class UnreadWeightsError(PollardError):
    """A folder or repository has weights, but none that transformers looks for."""

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__(
            f"{where} has weights only under names that transformers does not look for ({_shown(names)}): it reads {SINGLE}, or "
            f"the files that {INDEX} names. Of a variant (model.fp16.safetensors), rename the file, or load it with variant=… "
            "and save it again; of another format, fetch the model's transformers checkpoint.",
            code="checkpoint.unread-weights",
        )


def check_no_adapter(path: str, revision: str | None = None) -> None:
    """Raises PollardError where a PEFT adapter lies in a folder or a hub repository: transformers puts it on top of the weights
    that it loads, so what answers is another model than the one in the files."""
    file = Path(path) / ADAPTER_CONFIG_NAME if Path(path).is_dir() else _adapter_on_hub(path, revision)
    if not file or not file.is_file():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    merge = "peft's AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…) does that"
    if (file.parent / "config.json").is_file():
        what = (
            f"{path} holds an adapter beside the model ({ADAPTER_CONFIG_NAME}), which transformers puts on top of the weights "
            f"when it loads them. Merge it into the weights ({merge}), or, to use the weights as they are, move "
            "adapter_config.json and adapter_model.* away"
        )
    else:
        of = f" of {base}" if base else ""
        what = f"{path} is an adapter{of}, no model. Merge the two first ({merge}), and give the folder of the result"
    raise PollardError(f"{what}.", code="checkpoint.adapter")


@cache
def _adapter_on_hub(path: str, revision: str | None) -> Path | None:
    found = find_adapter_config_file(path, revision=revision)
    return Path(found) if found else None


# What a repository may hold besides the model: its weights in other formats, under other names, and in folders of other tools
# (gpt-oss has them twice more, in original/ and metal/)
IGNORED_FILES = [
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.nemo", "*.gguf", "*.ggml", "*.tflite", "*.mlmodel"),
    *("*.onnx", "*.onnx_data*", "*.onnx.data*", "*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json"),
    *("consolidated*", "model.*.safetensors", "model-*.*.safetensors", "model.safetensors.index.*.json", "adapter_model*"),
    *(f"{folder}/*" for folder in ("original", "metal", "onnx", "openvino", "coreml", "tflite", "gguf", "mlx", "flax", "tf")),
    *("*/*.safetensors", "*/*.safetensors.index*.json", "openvino_*", "*.mlpackage/*", "checkpoint-*/*"),
]


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of a hub model in the hub's cache, with everything that belongs to it there; without a network, with what
    was fetched before. Where its weights are in no safetensors file, it has none: transformers fetches those it reads.

    Raises NotLookedForError, and what huggingface_hub and transformers raise.
    """
    try:
        found = snapshot_download(repository, revision=revision, ignore_patterns=[*IGNORED_FILES, "*.safetensors"])
    except IncompleteSnapshotError as error:
        found = error.snapshot_path
        say(f"  {repository}: the hub cannot be reached, and not all of its files were fetched before: going on with those there")
    folder = Path(found)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision  # the same for what is fetched now
    options: dict[str, Any] = {"revision": commit, "_raise_exceptions_for_missing_entries": False}
    named = named_by_config(folder)
    for name in [named] if named else [SINGLE, INDEX]:
        file = cached_file(repository, name, **options)
        if file and name.endswith(".index.json"):
            get_checkpoint_shard_files(repository, file, revision=commit)
        if file:
            return folder
    _check_names(repository, commit)
    return folder


def _check_names(repository: str, revision: str | None) -> None:
    """Raises NotLookedForError where a repository has weights, and none that transformers would fetch by itself."""
    try:
        there = list_repo_files(repository, revision=revision)
    except Exception:  # no way to the hub: whoever opens the weights says so
        return
    weights = [name for name in there if is_weights(name)]
    if weights and not {WEIGHTS_NAME, WEIGHTS_INDEX_NAME} & {*weights}:
        raise UnreadWeightsError(repository, weights)


TEMPLATES = "additional_chat_templates"
REWRITTEN_FILES = ("config.json", PROVENANCE)
WEIGHT_SPECIFIC_FILES = (
    SKIPPING_FILE,
    "adapter_config.json",
)  # thresholds of the model as it was; what would be put on top of it


def companions(folder: Path) -> list[Path]:
    """The companion files of a checkpoint folder, relative to it."""
    found = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_dir():
            found += _in_folder(path)
        elif path.is_file() and not _is_left(name) and name not in REWRITTEN_FILES:
            found.append(path)
    return [path.relative_to(folder) for path in found]


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copies the companions of one checkpoint folder to another, in place of what a library has written there under these
    names; returns what is left out of `source`: other weights, adapters, folders."""
    for file in companions(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    return files_left_out(source)


def files_left_out(folder: Path) -> list[str]:
    """What of a checkpoint folder is neither copied nor written anew, but for hidden and temporary files."""
    taken = {path.parts[0] for path in companions(folder)} | {*REWRITTEN_FILES}
    names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
    return [name for name in names if name.rstrip("/") not in taken and not _is_hidden(name)]


def _is_left(name: str) -> bool:
    return _is_hidden(name) or is_weights(name) or name in WEIGHT_SPECIFIC_FILES


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(".tmp") or name.rstrip("/") == "__pycache__"


def _in_folder(folder: Path) -> list[Path]:
    if folder.name == TEMPLATES:
        pattern = "*"
    elif (folder / "__init__.py").is_file() and not _is_hidden(folder.name):
        pattern = "*.py"  # a package that the code beside the weights imports
    else:
        return []
    return [path for path in sorted(folder.rglob(pattern)) if path.is_file() and not _is_hidden(path.name)]
