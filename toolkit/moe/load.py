"""Open checkpoints, with errors that say what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from toolkit.errors import PollardError

T = TypeVar("T")


def load_config(path: str, revision: str | None = None) -> Any:
    """The configuration; raises PollardError when `path` is no checkpoint and no reachable hub model."""
    return _explained(lambda: AutoConfig.from_pretrained(path, revision=revision), path)


def model_class(config_class: type) -> Any:
    """transformers' own door to a language model (a multimodal one answers to text alone, too); None where it has none."""
    for door in (AutoModelForCausalLM, AutoModelForImageTextToText):
        model: Any = door._model_mapping.get(config_class, object)
        if issubclass(model[0] if isinstance(model, tuple) else model, GenerationMixin):
            return door
    return None


def _door(config: Any) -> Any:
    door = model_class(type(config))
    if door is None:
        raise PollardError(
            f"{config.model_type} is no family that transformers writes text with, token by token. "
            "Of a model with several parts, give the checkpoint of its language model."
        )
    return door


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left; eos pads where there is no pad token."""
    tokenizer = _explained(lambda: AutoTokenizer.from_pretrained(path, revision=revision), path)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    spread: bool = False,
) -> PreTrainedModel:
    """The causal language model on `device`.

    `dtype`: "checkpoint" is the checkpoint's own; "auto" is that on a machine with a GPU, else float32 (bfloat16 is slow
    on CPUs). `spread` puts the layers on all visible GPUs instead, for a model larger than one.
    MXFP4 checkpoints (gpt-oss) are dequantized: what is trained and sliced afterwards must be plain numbers.
    """
    if dtype == "auto":
        dtype = "checkpoint" if torch.cuda.is_available() else "float32"
    config = load_config(path, revision)
    options: dict[str, Any] = {"revision": revision, "dtype": "auto" if dtype == "checkpoint" else dtype}
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        if method != "mxfp4":
            raise PollardError(
                f"{path} is quantized ({method}), which cannot be pruned and trained. Use its unquantized checkpoint."
            )
        from transformers import Mxfp4Config  # type: ignore[attr-defined]

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    door = _door(config)
    if spread:
        options["device_map"] = "auto"
    model = _explained(lambda: door.from_pretrained(path, **options), path)
    there = spread or is_deepspeed_zero3_enabled()  # ZeRO-3 puts the parts where it wants them
    return model.eval() if there else model.to(device).eval()  # type: ignore[arg-type]


def dtype_of(config: Any, dtype: str) -> torch.dtype:
    """What `load_model` makes of its `dtype`."""
    if dtype == "auto":
        dtype = "checkpoint" if torch.cuda.is_available() else "float32"
    return (config.dtype or torch.float32) if dtype == "checkpoint" else getattr(torch, dtype)


def meta_model(config: Any) -> PreTrainedModel:
    """The model without its weights: built on the meta device from the configuration alone, in no time."""
    with torch.device("meta"):
        return _door(config).from_config(config)


def _explained(load: Callable[[], T], path: str) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        gated = "gated" in str(error).lower() or "401" in str(error) or "403" in str(error)
        if "does not recognize this architecture" in str(error):
            what = "Its family is newer than the installed transformers, or needs remote code, which Pollard does not run."
        elif Path(path).is_dir():
            what = "The folder is no complete transformers checkpoint (config.json, weights, tokenizer)."
        elif gated:
            what = "The model is gated: accept its licence on the hub, then `hf auth login` (or set HF_TOKEN)."
        else:
            what = (
                "No such folder, and the hub does not have it or cannot be reached: check the name, model.revision and the "
                "network (HF_TOKEN for a private model), or give the path of a downloaded checkpoint: model=…"
            )
        raise PollardError(
            f"Cannot open the model {path}. {what}\n(transformers says: {str(error).strip().splitlines()[0]})"
        ) from error
