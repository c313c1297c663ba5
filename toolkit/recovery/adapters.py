"""LoRA through PEFT: on the experts and on the decoder's other linear layers; merged at the end.

On fused experts, PEFT adapts the parameters (`target_parameters`); on unfused ones, each expert's linear layers. What is
saved is always the adapter of the fused experts, so that stock PEFT loads it on the pruned checkpoint.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from toolkit.cuts.checkpoint import check_whole, complete_checkpoint, write_checkpoint
from toolkit.moe import (
    UNFUSED,
    MoEBlock,
    blocks_in,
    checkpoint_folder,
    decoder_linears,
    expert_weights,
    linear_name,
)
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recovery.method import Training, adaptable
from toolkit.recovery.shared_adapters import adapters_of_every_expert, share_adapters
from toolkit.runtime.distributed import on_main
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import provenance, whole_folder


def adapt(model: PreTrainedModel, blocks: list[MoEBlock], linears: Iterable[str], lora: LoraRecipe) -> PeftModel:
    """`model` with adapters on the experts of `blocks` and on the layers named `linears`; everything else is frozen.

    Raises PollardError where the experts cannot be adapted, and where PEFT has left a weight out.
    """
    adapted = _with_adapters(model, blocks, linears, lora, autocast_adapter_dtype=False)  # DeepSpeed keeps the float32 copy
    if lora.experts == "shared":
        share_adapters(adapted)
    return adapted


def _with_adapters(
    model: PreTrainedModel, blocks: list[MoEBlock], linears: Iterable[str], lora: LoraRecipe, **options: Any
) -> PeftModel:
    modules = adaptable(model, blocks, linears)
    parameters = []
    for block in blocks:
        if hasattr(block.experts, UNFUSED):
            modules += [
                f"{block.experts_name}.{name}" for name, module in block.experts.named_modules() if isinstance(module, nn.Linear)
            ]
        else:
            parameters += [f"{block.experts_name}.{weight}" for weight in expert_weights(block)]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,  # a parameter has no input to drop from
        target_modules=modules,
        target_parameters=parameters or None,
        # Families read attributes of their routers, which adapters would hide; whole, a router is small
        modules_to_save=[block.router_path for block in blocks] if lora.router else None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config, **options)
    wanted = len(modules) + len(parameters)
    found = sum(isinstance(module, LoraLayer) for module in adapted.modules())
    if found != wanted:
        raise PollardError(
            f"PEFT has adapted {found} of {wanted} weights. Use finetuning.method full, router or experts.",
            code="recovery.not-adapted",
        )
    adapted.peft_config["default"].target_modules = set(modules)  # PEFT shortens a long list, and reads it otherwise
    return adapted


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trained weights, whole and on CPU, by the names they have where each expert has its own. Every rank takes part, since
    ZeRO-3 gathers here."""
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter]):
                weights[name] = parameter.detach().cpu().clone()
    return adapters_of_every_expert(model, weights)


def with_adapter(model: PreTrainedModel, lora: LoraRecipe, weights: dict[str, torch.Tensor]) -> PeftModel:
    """The stock `model` with the trained `adapter_weights`, as an adapter of fused experts even where unfused ones trained."""
    blocks = blocks_in(model)
    adapted = _with_adapters(model, blocks, decoder_linears(model, blocks), lora)
    weights = dict(weights)
    for name, module in adapted.named_modules():
        each = f"{name.partition('.base_layer')[0]}.{UNFUSED}"
        if isinstance(module, ParamWrapper) and any(key.startswith(f"{each}.0.") for key in weights):
            a, b = (
                [
                    weights.pop(f"{each}.{e}.{linear_name(module.parameter_name)}.{part}.default.weight")
                    for e in range(module.num_experts)
                ]
                for part in ("lora_A", "lora_B")
            )
            weights[f"{name}.lora_A.default.weight"] = torch.cat(a)  # [E·r, in]: by expert, then rank
            weights[f"{name}.lora_B.default.weight"] = torch.stack(b, -1).flatten(1)  # [out, r·E]: by rank, then expert
    unknown = adapted.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise PollardError(
            f"What was trained does not fit the pruned model: {unknown[:3]}. Please report this.",
            code="recovery.adapter-mismatch",
        )
    return adapted


def save_merged(model: PeftModel, lora: LoraRecipe, load_base: Callable[[], PreTrainedModel], training: Training) -> None:
    """Writes the trained adapter, and the checkpoint of `load_base` (called on rank 0) with the adapter added in. Every rank
    takes part.

    Raises PollardError where the checkpoint does not come out whole.
    """
    weights = adapter_weights(model)
    unset_hf_deepspeed_config()  # or ZeRO-3 would partition the model that rank 0 now loads alone

    def write() -> None:
        stock = load_base()
        needed = sum(parameter.numel() for parameter in stock.parameters())
        adapted = with_adapter(stock, lora, weights)
        with whole_folder(training.adapter, provenance("adapter", training.source, training.revision)) as folder:
            adapted.save_pretrained(str(folder), save_embedding_layers=False)
            _say_what_it_is(folder, training)
        with whole_folder(training.target, training.facts) as folder:
            merged = adapted.merge_and_unload()
            write_checkpoint(merged, folder)
            check_whole(folder, needed)
            source = checkpoint_folder(training.source, training.revision)
            complete_checkpoint(source, folder, merged.config, merged.dtype)

    on_main(write)


README = """# An adapter of {source}

`{target}` is the model with this adapter merged in: an ordinary checkpoint, which needs no PEFT. **Serve that one.**

Most of what is here belongs to the experts of mixture-of-experts blocks. PEFT puts it on them. Some servers that take adapters
know those of plain linear layers only: they load this one without an error, leave the experts as they were, and answer worse.
"""


def _say_what_it_is(folder: Path, training: Training) -> None:
    """Puts that in the place of PEFT's empty model card, whose metadata stays."""
    card = folder / "README.md"
    metadata = re.match(r"---\n.*?\n---\n", card.read_text(encoding="utf-8"), re.DOTALL)
    text = README.format(source=training.source, target=training.target.name)
    card.write_text((metadata.group() if metadata else "") + "\n" + text, encoding="utf-8")
