"""Open checkpoints, with errors that say what to do; and compute only the logits that are needed.

Shape legend: N counted positions, V vocabulary, B sequences, S positions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from toolkit.moe.completeness import mismatch
from toolkit.moe.expert_skipping import SKIPPING_FILE, Skipping, apply_skipping
from toolkit.moe.model_files import check_no_adapter, fetch, report_unread_weights
from toolkit.moe.names import NameResolver
from toolkit.moe.open_errors import explained
from toolkit.moe.tokenizer import check_padding, find_file, load_generation_config
from toolkit.runtime.errors import PollardError

DEQUANTIZED = ("mxfp4",)  # quantization methods that `load_model` converts to plain numbers


def checkpoint_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub model is fetched into the hub's cache first: everything that is no weights, and
    of the weights those safetensors files that transformers reads. Raises PollardError when it is neither."""
    if Path(path).is_dir():
        return Path(path)
    return explained(lambda: fetch(path, revision), path)


def load_config(path: str, revision: str | None = None) -> Any:
    """The configuration; raises PollardError when `path` is no checkpoint and no reachable hub model."""
    explained(lambda: check_no_adapter(path, revision), path)
    return explained(lambda: AutoConfig.from_pretrained(path, revision=revision), path, "configuration")


def auto_class(config_class: type) -> Any:
    """The Auto class that opens a language model of this configuration (a multimodal one generates from text alone, too); None
    where transformers has none."""
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        model: Any = auto._model_mapping.get(config_class, object)
        if issubclass(model[0] if isinstance(model, tuple) else model, GenerationMixin):
            return auto
    return None


def _auto_class(config: Any) -> Any:
    found = auto_class(type(config))
    if found is None:
        raise PollardError(
            f"{config.model_type} is no family that transformers writes text with, token by token. "
            "Of a model with several parts, give the checkpoint of its language model.",
            code="model.unsupported-family",
        )
    return found


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
    Where the checkpoint has thresholds (skipping.json) the model skips experts by them, unless `skipping` is false.
    """
    config = load_config(path, revision)
    options: dict[str, Any] = {"revision": revision, "dtype": resolve_dtype(dtype, config) or "auto"}
    check_runnable(config, path)
    method = quantization_of(config)
    if method:
        from transformers import Mxfp4Config  # type: ignore[attr-defined]

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    report_unread_weights(str(checkpoint_folder(path, revision)))
    opener = _auto_class(config)
    if spread:
        options["device_map"] = "auto"
    load_generation_config(path, revision)
    thresholds = load_thresholds(path, revision) if skipping else None
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below, with the shapes
    model, found = explained(lambda: opener.from_pretrained(path, **options), path, "weights")
    if found["mismatched_keys"]:
        name, stored, described = min(found["mismatched_keys"])
        more = len(found["mismatched_keys"]) - 1
        raise PollardError(
            f"Cannot open the model {path}. {mismatch(name, stored, described, config)}"
            + f" ({more:,} more tensors do not fit.)" * bool(more),
            code="checkpoint.shape-mismatch",
        )
    NameResolver(model).check_layers(found["unexpected_keys"])
    missing = sorted(found["missing_keys"])  # transformers leaves them random, and only warns
    if missing and not is_deepspeed_zero3_enabled():  # there `check_loaded` reports it
        raise PollardError(
            f"{path} lacks {len(missing)} of the model's tensors, or has them under other names: {', '.join(missing[:3])}"
            f"{', …' * (len(missing) > 3)}. Is a file of it missing? Fetch or write the checkpoint again.",
            code="checkpoint.tensors-missing",
        )
    if method:  # or what is saved later would bear the names of the quantized tensors, which no reader looks for
        model._weight_conversions = None
    if thresholds:
        apply_skipping(model, thresholds)
    placed = spread or is_deepspeed_zero3_enabled()  # ZeRO-3 places the parts itself
    return model.eval() if placed else model.to(device).eval()  # type: ignore[arg-type]


def load_thresholds(path: str, revision: str | None = None) -> Skipping | None:
    """The thresholds by which a checkpoint's tokens skip experts; None without. Raises PollardError for a damaged file."""
    file = find_file(path, SKIPPING_FILE, revision)
    return Skipping.load(Path(file).parent) if file else None


def quantization_of(config: Any) -> str | None:
    """How the checkpoint's weights are quantized ("mxfp4", "fp8", …), or None."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(method or "by an unknown method")


def check_runnable(config: Any, path: str) -> None:
    """Raises PollardError for a quantized model that `load_model` cannot convert to plain numbers."""
    method = quantization_of(config)
    if method and method not in DEQUANTIZED:
        raise PollardError(
            f"{path} is quantized ({method}): its checkpoint can be pruned, but not be run, observed or trained here. Take its "
            "unquantized copy for that (bfloat16; most makers publish one): model=…. What is learnt of it holds for this one, "
            f'too: prune it with the plan of that run, toolkit.prune("{path}", toolkit.Plan.load("runs/…/plan.json"), "pruned").',
            code="model.quantized",
        )


def resolve_dtype(dtype: str, config: Any) -> torch.dtype | None:
    """The torch dtype that `dtype` (as in `load_model`) means for this checkpoint; None where its configuration does not say."""
    if dtype == "auto":
        dtype = "checkpoint" if torch.cuda.is_available() else "float32"
    return config.dtype if dtype == "checkpoint" else getattr(torch, dtype)


def meta_model(config: Any, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model without its weights: built on the meta device from the configuration alone, in no time."""
    path = str(getattr(config, "name_or_path", "") or config.model_type)
    with torch.device("meta"):
        return explained(lambda: _from_config(config, dtype), path, "configuration")


def _from_config(config: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    try:
        return _auto_class(config).from_config(config, **({"dtype": dtype} if dtype else {}))
    except AssertionError:  # torch's own, for a padding token without a row
        check_padding(config)
        raise


def random_model(config: Any, dtype: str = "auto", device: torch.device | str = "cpu") -> PreTrainedModel:
    """A model of that shape whose weights are random and whose routers really choose (in several families they begin at
    zero): to measure speed and memory with."""
    with torch.device(device):
        model = _auto_class(config).from_config(config, dtype=resolve_dtype(dtype, config) or torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()


def logits_at(model: Any, inputs: Mapping[str, torch.Tensor], counted_BS: torch.Tensor) -> torch.Tensor:
    """The logits [N, V] that predict the `counted` ones of positions 1 … S-1, example after example.

    Only positions that some example needs go through the output layer.
    """
    positions = counted_BS.any(0).nonzero().flatten()
    logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
    if logits.shape[1] != len(positions):  # a family that always answers for all
        logits = logits[:, positions]
    return logits[counted_BS[:, positions]]
