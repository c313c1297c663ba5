"""What of the model is trained (`finetuning.method`): set up, checked and told before the first step."""

from collections import Counter
from importlib.util import find_spec
from math import prod
from typing import Any

from torch import nn
from transformers import TrainingArguments

from toolkit.moe import (
    UNFUSED,
    MoEBlock,
    check_loaded,
    decoder_linears,
    expert_weights,
    find_blocks,
    load_config,
    load_model,
    meta_model,
)
from toolkit.recipe.schema import Recipe
from toolkit.recipe.trainer_defaults import LEARNING_RATES
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

ADAPTED = ("lora", "qlora")
PEFT_PREFIX = "base_model.model."  # what PEFT puts before a module's name


def check_method(recipe: Recipe) -> None:
    """Raises PollardError where the recipe's method cannot work: a package is missing, or the model's experts do not allow
    it. Reads the model's configuration alone."""
    method = recipe.finetuning.method
    if method not in ADAPTED:
        return
    for package in ("peft", "bitsandbytes")[: 2 if method == "qlora" else 1]:
        if find_spec(package) is None:
            raise PollardError(f"finetuning.method {method} needs {package}, which is not installed: pip install {package}")
    for block in find_blocks(meta_model(load_config(recipe.model.path, recipe.model.revision))):
        expert_weights(block)


def trainable_model(recipe: Recipe, arguments: TrainingArguments, source: str, revision: str | None = None) -> Any:
    """The checkpoint `source` set up for the recipe's method: transformers' model or, with adapters, PEFT's around it.

    Call it on every rank, after `arguments` were made. Under ZeRO-3 the parameters are partitioned as they load; those of
    qlora, which must be quantised whole, when training begins. Raises PollardError where the method does not reach what it
    should in every block.
    """
    settings = recipe.finetuning
    model: Any
    if settings.method == "qlora":
        from toolkit.recovery.quantize import load_quantized

        model, blocks, linears = load_quantized(recipe, arguments, source, revision)
    else:
        model = load_model(source, revision, recipe.model.dtype, skipping=False)
        check_loaded(model, source, revision)
        blocks = find_blocks(model)
        linears = [*decoder_linears(model, blocks)]
    total = sum(_count(parameter) for parameter in model.parameters())
    if settings.method in ADAPTED:
        from toolkit.recovery.adapters import adapt

        model = adapt(model, blocks, linears, settings.lora)
    elif settings.method != "full":
        freeze_all_but(model, blocks, experts=settings.method == "experts")
    check_reached(model, blocks, settings.method, settings.lora.router)
    trained = count_trainable(model, blocks)
    number = sum(trained.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in trained.items())
    say(f"  {settings.method}: trains {number:,} parameters ({number / total:.2%} of the model's {total:,}): {parts}")
    if "learning_rate" not in settings.trainer:
        reason = ": adapters learn at ten times the rate of full fine-tuning" if settings.method in ADAPTED else ""
        say(f"  learning rate {LEARNING_RATES[settings.method]:g} (auto{reason})")
    return model


def count_trainable(model: nn.Module, blocks: list[MoEBlock]) -> Counter[str]:
    """How many numbers train in experts, routers and other layers; `blocks` are those found before adapters were added."""
    counts = Counter({"experts": 0, "routers": 0, "other layers": 0})
    for name, parameter in _trainable(model):
        counts[_part(name, blocks)] += _count(parameter)
    return counts


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n.removeprefix(PEFT_PREFIX), p) for n, p in model.named_parameters() if p.requires_grad]


def _part(name: str, blocks: list[MoEBlock]) -> str:
    if any(name.startswith(f"{block.experts_name}.") for block in blocks):
        return "experts"
    return "routers" if any(name.startswith(f"{block.router_path}.") for block in blocks) else "other layers"


def _count(parameter: Any) -> int:
    """How many numbers a parameter is, also one that ZeRO-3 has partitioned or that is stored in 4 bits."""
    quantized = getattr(parameter, "quant_state", None)
    return prod(quantized.shape) if quantized else getattr(parameter, "ds_numel", parameter.numel())


def freeze_all_but(model: nn.Module, blocks: list[MoEBlock], experts: bool) -> None:
    """Leaves the routers trainable, and with `experts` the experts; what a family has frozen itself stays frozen."""
    parts = {"routers", *(["experts"] if experts else [])}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and _part(name, blocks) in parts)


def check_reached(model: nn.Module, blocks: list[MoEBlock], method: str, lora_router: bool = False) -> None:
    """Raises PollardError unless, in every block, the method trains the experts and the router, or leaves them alone, as it
    should; every weight of every expert counts."""
    trainable = [name for name, _ in _trainable(model)]
    for block in blocks:
        if method in ADAPTED:  # a pair of matrices for each weight
            experts = 2 * 2 * (block.expert_count if hasattr(block.experts, UNFUSED) else 1)
        else:
            experts = len([*block.experts.parameters()]) if method != "router" else 0
        router = method not in ADAPTED or lora_router
        found = {path: sum(name.startswith(f"{path}.") for name in trainable) for path in (block.experts_name, block.router_path)}
        if found[block.experts_name] != experts or (found[block.router_path] > 0) != router:
            raise PollardError(
                f"finetuning.method {method} should train {experts} tensors of the experts of {block.name} and "
                f"{'some' if router else 'none'} of its router, and reaches {[*found.values()]}: this family is not set up "
                "rightly. Use another method, and please report this."
            )
