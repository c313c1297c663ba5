"""Explain the errors of libraries that open a checkpoint: what is wrong, in which file, and what to do.

transformers, tokenizers, safetensors and the hub's client raise whatever they meet (OSError, KeyError, RecursionError, plain
Exception, …). None of it is a bug of Pollard's, so every such call goes through `explained`, and no other call does.
"""

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from toolkit.moe.model_files import checkpoint_files
from toolkit.moe.tensor_files import read_header
from toolkit.runtime.errors import PollardError

T = TypeVar("T")
Part = Literal["files", "configuration", "tokenizer", "weights", "generation settings", "GGUF file"]
FILES: dict[Part, tuple[str, ...]] = {  # the JSON files of each part
    "files": (),
    "configuration": ("config.json",),
    "tokenizer": (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
        "vocab.json", "config.json",
    ),
    "weights": ("config.json",),  # and what checkpoint_files reads
    "generation settings": ("generation_config.json",),
    "GGUF file": (),
}  # fmt: skip
PACKAGES = ("sentencepiece", "tiktoken", "protobuf", "blobfile", "mistral-common", "mistral_common")
AGAIN = "Is the download complete? Fetch it again."


def explained(load: Callable[[], T], path: str, part: Part = "files") -> T:
    """What `load` returns, a call of a library that opens `part` of the checkpoint at `path`; its errors as PollardErrors that
    say what to do. KeyboardInterrupt passes, as do PollardErrors."""
    try:
        return load()
    except PollardError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        original = f"(the error: {type(error).__name__}: {first})"
        raise PollardError(
            f"Cannot open the model {path}. {_reason(error, path, part)}\n{original}", code="model.does-not-open"
        ) from error


def _reason(error: Exception, path: str, part: Part) -> str:
    text = str(error)
    if _is_full_memory(error):
        return _full_memory(error)
    if part == "GGUF file":
        return (
            "The file is damaged, or its family is none that transformers reads from GGUF files. Fetch it again, or take the "
            "model's transformers checkpoint."
        )
    if Path(path).is_dir():
        fault = _faulty_file(Path(path), part)
    else:
        hub = isinstance(error, OSError | HFValidationError) and "valid JSON" not in text
        fault = _unreachable(text) if hub else None
    if not fault and "does not recognize this architecture" in text:
        return "Its family is newer than the installed transformers, or needs remote code, which Pollard does not run."
    return fault or _fault_of(error, path, part)


def _unreachable(text: str) -> str:
    if "gated" in text.lower() or "401" in text or "403" in text:
        return "The model is gated: accept its licence on the hub, then `hf auth login` (or set HF_TOKEN)."
    return (
        "No such folder, and the hub does not have it or cannot be reached: check the name, model.revision and the "
        "network (HF_TOKEN for a private model), or give the path of a downloaded checkpoint: model=…"
    )


def _faulty_file(folder: Path, part: Part) -> str | None:
    """The first file of this part that is missing or can be seen to be broken."""
    if not folder.is_dir():
        return None
    if part != "tokenizer" and not (folder / "config.json").is_file():
        return "The folder is no complete transformers checkpoint (config.json, weights, tokenizer): it has no config.json."
    for name in FILES[part]:
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{file} is no valid JSON ({error}). {AGAIN}"
        if not isinstance(content, dict):
            return f"{file} is JSON, but no object ({{…}}). {AGAIN}"
        if name == "config.json" and not content.get("model_type"):
            return f"{file} has no `model_type`, which says of what family the model is. Is it this model's config.json?"
    if part == "weights":
        try:
            files = checkpoint_files(folder)
            for file in files.weights if files.safetensors else ():
                read_header(file)
        except PollardError as error:
            return str(error)
        if not files.weights:
            return f"The folder is no complete transformers checkpoint: it has no weights (*.safetensors). {AGAIN}"
    elif part == "tokenizer" and not any(folder.glob("*token*")) and not any(folder.glob("vocab.*")):
        return (
            "The folder is no complete transformers checkpoint: it has no tokenizer (tokenizer.json). Copy the original's there."
        )
    return None


def _fault_of(error: Exception, path: str, part: Part) -> str:
    text, package = str(error), _package(str(error))
    if part in ("tokenizer", "weights") and not _config_opens(path):
        part = "configuration"
    if part == "tokenizer":
        if isinstance(error, ImportError) or (package and not (Path(path) / "tokenizer.json").is_file()):
            name = package or getattr(error, "name", None) or "a package"
            return f"Its tokenizer needs {name}, which is not installed: pip install {name} (or give it a tokenizer.json)."
        if "Tokenizer class" in text or "tokenizer_class" in text:
            return (
                "tokenizer_config.json names a tokenizer_class that the installed transformers does not have: update "
                "transformers, or fetch a checkpoint whose tokenizer needs no remote code."
            )
        key = re.search(r"(?:Special token )(\w+)", text)
        if key:
            return f"tokenizer_config.json has a wrong value under {key[1]}: put the token's text there."
        return (
            f"Its tokenizer.json (or tokenizer_config.json) cannot be read by the installed tokenizers {version('tokenizers')}: "
            "it is damaged, or was written by a newer version. Fetch the tokenizer again, or update tokenizers and transformers."
        )
    if part == "configuration":
        if "model_type" in text:
            return "Its config.json has no `model_type`, which says of what family the model is. Is it this model's config.json?"
        key = re.search(r"field '(\w+)'", text)
        where = f", at {key[1]}" if key else ""
        return (
            f"Its config.json describes no model that the installed transformers {version('transformers')} can build{where}: a "
            "value is wrong, or it is of a newer version. Compare it with the published one."
        )
    if part == "generation settings":
        return f"Its generation_config.json cannot be read: correct or remove it. {AGAIN}"
    if part == "weights":
        return f"Its weights cannot be loaded: a value of its config.json is wrong, or a file of the weights is damaged. {AGAIN}"
    return "The folder is no complete transformers checkpoint (config.json, weights, tokenizer)."


def _config_opens(path: str) -> bool:
    """The tokenizer and the weights are opened by way of the configuration, whose faults are then theirs."""
    if not (Path(path) / "config.json").is_file():
        return True
    try:
        AutoConfig.from_pretrained(path)
    except Exception:  # explained by the file's content
        return False
    return True


def _package(text: str) -> str | None:
    """The package that a tokenizer lacks, where the error names one."""
    found = re.search(r"requires? (?:the )?[`']?([\w-]+)|[`']([\w-]+)[`'] is required|pip install ([\w-]+)", text)
    named = next((group for group in found.groups() if group), "") if found else ""
    if named.lower() in PACKAGES:
        return named
    return next((package for package in PACKAGES if package in text.lower() and "install" in text.lower()), None)


def _is_full_memory(error: Exception) -> bool:
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # what torch raises where the RAM is full
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or cpu


def _full_memory(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "It does not fit in the GPU's memory beside what is there already: use more GPUs (model.placement=spread), one with "
            "more memory, or numbers of fewer bytes (model.dtype=bfloat16). `pollard estimate` tells what a recipe takes."
        )
    return (
        "The memory (RAM) does not hold it: use a machine with more, fewer processes on this one, or numbers of fewer bytes "
        "(model.dtype=bfloat16). `pollard estimate` tells what a recipe takes."
    )
