"""Checkpoint folders: prune one into another, write one so that every reader finds what it looks for."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel

from toolkit.errors import PollardError
from toolkit.files import whole_folder, write_text
from toolkit.moe.blocks import EXPERT_KEYS, TOP_K_KEYS
from toolkit.moe.load import load_model
from toolkit.moe.mask import masked
from toolkit.moe.slice import slice_model
from toolkit.plan import Plan

PROBE_TOKENS = 32
# Layers that predict further tokens are no part of the model that transformers loads and saves: written without them,
# a checkpoint must not promise them
FURTHER_TOKENS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
# The sliced model sums the same products as the masked one, perhaps in another order: rounding of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def prune_checkpoint(source: str | Path, plan: Plan, target: str | Path, revision: str | None = None) -> None:
    """Writes the checkpoint `source` without the pruned experts to `target`, as a stock checkpoint in the same dtype.

    Verified before it gets its name: reloaded by stock transformers, its logits are those of the sliced model exactly,
    and those of the masked original up to rounding (1e-5 of the largest logit in float32). Raises PollardError when the
    plan does not fit the model or the verification fails; nothing is left at `target` then.
    """
    source = str(source)
    model = load_model(source, revision, dtype="checkpoint")
    vocabulary = int(model.config.get_text_config().vocab_size)
    probe = torch.randint(vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with masked(model, plan):
        expected = _logits(model, probe)
    sliced = _logits(aligned(slice_model(model, plan)), probe)
    with whole_folder(target) as folder:
        write_checkpoint(model, folder)
        copy_companions(source, folder, revision)
        del model
        reloaded = _logits(aligned(load_model(str(folder), dtype="checkpoint")), probe)
        if not torch.equal(reloaded, sliced):
            gap = (reloaded - sliced).abs().max().item()
            raise PollardError(
                f"The pruned checkpoint does not reload as it was written (logits differ by {gap:.3g}). Please report this."
            )
        gap = ((sliced - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()
        if not gap <= TOLERANCE[expected.dtype]:
            raise PollardError(
                f"The pruned model is not the original without its pruned experts (logits differ by {gap:.3g}): "
                f"this family is not sliced rightly. Please report this."
            )


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its weights copied out of the memory-mapped file.

    How a CPU rounds a product depends on where in memory the matrix begins: without this, equal weights give logits that
    differ in the last bit, and nothing can be shown to be exactly equal.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


@torch.no_grad()
def _logits(model: PreTrainedModel, probe: torch.Tensor) -> torch.Tensor:
    return model(probe, use_cache=False).logits


def write_checkpoint(model: PreTrainedModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """`save_pretrained`, and the number of experts under every name a reader of this family may look for."""
    model.save_pretrained(folder, state_dict=state_dict)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    _complete(written, model.config)
    write_text(path, json.dumps(written, indent=2, sort_keys=True) + "\n")


def _complete(written: dict[str, Any], config: Any) -> None:
    """transformers 5 saves one spelling of each count; version 4 reads another, and its default without it."""
    for alias, name in config.attribute_map.items():
        if alias in EXPERT_KEYS + TOP_K_KEYS and name in written:
            written[alias] = written[name]
    written.update({key: 0 for key in FURTHER_TOKENS if written.get(key)})
    for part in config.sub_configs:  # text_config of a multimodal model
        if isinstance(written.get(part), dict):
            _complete(written[part], getattr(config, part))


def copy_companions(source: str, folder: Path, revision: str | None = None) -> None:
    """Tokenizer and chat template, as they are in `source` (a model may come without)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError):
        return
    tokenizer.save_pretrained(folder)


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a checkpoint folder, read from the files' headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes
