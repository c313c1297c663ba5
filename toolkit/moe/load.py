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
from transformers.utils import cached_file

from toolkit.errors import PollardError
from toolkit.moe.checkpoint_files import refuse_adapter, say_what_is_read
from toolkit.moe.hub import NOT_FETCHED as NOT_FETCHED
from toolkit.moe.hub import fetched
from toolkit.moe.skip import apply_skipping
from toolkit.skipping import FILE as SKIPPING
from toolkit.skipping import Skipping

T = TypeVar("T")

DEQUANTIZED = ("mxfp4",)  # what `load_model` makes plain numbers of


def checkpoint_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub model is fetched into the hub's cache first: everything beside the weights, and
    of the weights those safetensors files that transformers reads. Raises PollardError when it is neither."""
    if Path(path).is_dir():
        return Path(path)
    return explained(lambda: fetched(path, revision), path)


def load_config(path: str, revision: str | None = None) -> Any:
    """The configuration; raises PollardError when `path` is no checkpoint and no reachable hub model."""
    explained(lambda: refuse_adapter(path, revision), path)
    return explained(lambda: AutoConfig.from_pretrained(path, revision=revision), path)


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
    tokenizer = explained(lambda: AutoTokenizer.from_pretrained(path, revision=revision), path)
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
    skipping: bool = True,
) -> PreTrainedModel:
    """The causal language model on `device`.

    `dtype`: "checkpoint" is the checkpoint's own; "auto" is that on a machine with a GPU, else float32 (bfloat16 is slow
    on CPUs). `spread` puts the layers on all visible GPUs instead, for a model larger than one.
    MXFP4 checkpoints (gpt-oss) are dequantized: what is trained and sliced afterwards must be plain numbers.
    Where thresholds lie beside the checkpoint (skipping.json) the model skips experts by them, unless `skipping` is false.
    """
    config = load_config(path, revision)
    options: dict[str, Any] = {"revision": revision, "dtype": number_type(dtype, config) or "auto"}
    method = quantization_of(config)
    if method:
        if method not in DEQUANTIZED:
            raise PollardError(
                f"{path} is quantized ({method}): its checkpoint can be pruned, but not be run, watched or trained here. "
                "Use its unquantized checkpoint."
            )
        from transformers import Mxfp4Config  # type: ignore[attr-defined]

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    say_what_is_read(str(checkpoint_folder(path, revision)))
    door = _door(config)
    if spread:
        options["device_map"] = "auto"
    thresholds = load_thresholds(path, revision) if skipping else None
    model, found = explained(lambda: door.from_pretrained(path, output_loading_info=True, **options), path)
    missing = sorted(found["missing_keys"])  # transformers leaves them random, and only warns
    if missing and not is_deepspeed_zero3_enabled():  # there `check_loaded` tells it, with the loader as a suspect
        raise PollardError(
            f"{path} lacks {len(missing)} of the model's tensors, or has them under other names: {', '.join(missing[:3])}"
            f"{', …' * (len(missing) > 3)}. Is a file of it missing? Fetch or write the checkpoint again."
        )
    if method:  # or what is saved later would bear the names of the quantized tensors, which no reader looks for
        model._weight_conversions = None
    if thresholds:
        apply_skipping(model, thresholds)
    there = spread or is_deepspeed_zero3_enabled()  # ZeRO-3 puts the parts where it wants them
    return model.eval() if there else model.to(device).eval()  # type: ignore[arg-type]


def load_thresholds(path: str, revision: str | None = None) -> Skipping | None:
    """When a checkpoint's tokens skip experts; None where they never do. Raises PollardError for a damaged file."""
    folder: str | Path | None = path
    if not Path(path).is_dir():
        file = cached_file(
            path, SKIPPING, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        folder = file and Path(file).parent
    return Skipping.beside(folder) if folder else None


def quantization_of(config: Any) -> str | None:
    """How the checkpoint's weights are quantized ("mxfp4", "fp8", …), or None."""
    found = getattr(config, "quantization_config", None)
    return str(found.get("quant_method") if isinstance(found, dict) else found.quant_method) if found else None


def number_type(dtype: str, config: Any) -> torch.dtype | None:
    """What `dtype` (as in `load_model`) means for this checkpoint; None where its configuration does not say."""
    if dtype == "auto":
        dtype = "checkpoint" if torch.cuda.is_available() else "float32"
    return config.dtype if dtype == "checkpoint" else getattr(torch, dtype)


def meta_model(config: Any, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model without its weights: built on the meta device from the configuration alone, in no time."""
    with torch.device("meta"):
        return _door(config).from_config(config, **({"dtype": dtype} if dtype else {}))


def random_model(config: Any, dtype: str = "auto", device: torch.device | str = "cpu") -> PreTrainedModel:
    """A model of that shape whose weights are random and whose routers really choose (in several families they begin at
    zero): to measure speed and memory with."""
    with torch.device(device):
        model = _door(config).from_config(config, dtype=number_type(dtype, config) or torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()


def explained(load: Callable[[], T], path: str) -> T:
    """What `load` returns; its errors, as PollardErrors that say what to do."""
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
