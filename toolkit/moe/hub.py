"""Fetch a checkpoint from the hub: all that lies beside the weights, and of the weights those files that transformers reads."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from toolkit.distributed import say
from toolkit.moe.checkpoint_files import INDEX, SINGLE, NotLookedForError, is_weights, named_by_config

# What a repository may hold beside the model: its weights in other formats, under other names, and in folders of other tools
# (gpt-oss has them twice more, in original/ and metal/)
NOT_FETCHED = [
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.nemo", "*.gguf", "*.ggml", "*.tflite", "*.mlmodel"),
    *("*.onnx", "*.onnx_data*", "*.onnx.data*", "*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json"),
    *("consolidated*", "model.*.safetensors", "model-*.*.safetensors", "model.safetensors.index.*.json", "adapter_model*"),
    *(f"{folder}/*" for folder in ("original", "metal", "onnx", "openvino", "coreml", "tflite", "gguf", "mlx", "flax", "tf")),
    *("*/*.safetensors", "*/*.safetensors.index*.json", "openvino_*", "*.mlpackage/*", "checkpoint-*/*"),
]


def fetched(repository: str, revision: str | None) -> Path:
    """The folder of a hub model in the hub's cache, with everything that belongs to it there; without a network, with what
    was fetched before. Where its weights are in no safetensors file, it has none: transformers fetches those it reads.

    Raises NotLookedForError, and what huggingface_hub and transformers raise.
    """
    try:
        found = snapshot_download(repository, revision=revision, ignore_patterns=[*NOT_FETCHED, "*.safetensors"])
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
        raise NotLookedForError(repository, weights)
