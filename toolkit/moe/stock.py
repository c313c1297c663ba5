"""Does a written folder open as it will for a stranger, with transformers alone?

Configuration, tokenizer and generation settings are opened as they are. So is the model, without keeping its weights, where
reading them once more costs nothing to speak of; of a larger one, transformers' loader gets the names and shapes that the
files' headers give, which is all that can be wrong with weights whose bytes are checked elsewhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from toolkit.moe.checkpoint_files import CheckpointFiles, checkpoint_files
from toolkit.moe.load import meta_model, model_class, quantization_of
from toolkit.moe.stream import quiet
from toolkit.runtime.errors import PollardError

READ_AGAIN = 2 * 10**9  # bytes of weights


def check_opens(folder: Path, source: Path) -> None:
    """Raises PollardError where transformers cannot open what is written in `folder`, or finds tensors missing or of another
    shape there. A tokenizer or generation settings that it cannot open in `source`, the checkpoint that it was made of, are
    not asked for; a model is. Quantized weights are not opened: their methods need packages and GPUs of their own.

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
                f"transformers cannot open {source}, and so not what is made of it: {_first_line(error)}. Put that right there."
            ) from error
        raise PollardError(_cannot(folder, "the model", _first_line(error))) from error
    wrong = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"]), *found["error_msgs"]])
    if wrong:
        raise PollardError(
            _cannot(folder, "the model", f"{len(wrong)} of its tensors are missing or of another shape: {wrong[0]}")
        )


def _loaded(folder: Path) -> dict[str, Any]:
    """What transformers says of loading the model, in full or by the headers of its files."""
    files, config = checkpoint_files(folder), AutoConfig.from_pretrained(folder)
    if sum(file.stat().st_size for file in files.weights) > READ_AGAIN:
        return _by_headers(files, config)
    with quiet():
        return model_class(type(config)).from_pretrained(folder, device_map="meta", output_loading_info=True)[1]


def _by_headers(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    tensors = {}
    for file in files.weights:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                shape = stored.get_slice(name).get_shape()
                nothing = stored.get_slice(name)[:0] if shape else stored.get_tensor(name)
                tensors[name] = torch.empty(shape, dtype=nothing.dtype, device="meta")
    model: Any = meta_model(config)
    with quiet():
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
        raise PollardError(_cannot(folder, part, _first_line(error))) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def _cannot(folder: Path, part: str, why: str) -> str:
    return f"transformers cannot open {part} of what was written to {folder}: {why}. Please report this."
