"""The methods of fine-tuning, and a checkpoint set up for one: checked and reported before the first step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from toolkit.moe import MoEBlock, find_blocks, sizes, train_routers_on_all_experts
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.lora import Lora
from toolkit.recovery.method import Loaded, Reach, RecoveryMethod, TrainedMemory, memory_of_part, parameters_of
from toolkit.recovery.new_experts import NewExperts, row_parameters
from toolkit.recovery.qlora import QLora
from toolkit.recovery.spp import Spp
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import TrainingArguments

PEFT_PREFIX = "base_model.model."  # what PEFT puts before a module's name


class Full(RecoveryMethod):
    name, meaning = "full", "everything"
    trains_routers = True
    lighter = ("lora", "qlora")

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=len([*block.experts.parameters()]), router=True)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        return memory_of_part(model, sizes(model).parameters)


class Router(RecoveryMethod):
    name, meaning, reference = "router", "the routers alone", "arXiv 2603.02217"
    saves_frozen_weights = trains_routers = True
    refuses_keep_zeros = "method router changes no matrix that has zeros: leave it out"

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        freeze_all_but(loaded.model, loaded.blocks, {"routers"})
        return loaded.model

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=0, router=True)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        return memory_of_part(model, parameters_of([block.router for block in find_blocks(model)]))


class Experts(RecoveryMethod):
    name, meaning = "experts", "the experts and the routers"
    saves_frozen_weights = trains_routers = True

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        freeze_all_but(loaded.model, loaded.blocks, {"routers", "experts"})
        return loaded.model

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=len([*block.experts.parameters()]), router=True)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        return memory_of_part(model, parameters_of([part for b in find_blocks(model) for part in (b.router, b.experts)]))


METHODS: dict[str, RecoveryMethod] = {
    method.name: method for method in (Full(), Lora(), QLora(), Router(), Experts(), NewExperts(), Spp())
}


def trainable_model(recipe: Recipe, arguments: "TrainingArguments", source: str, revision: str | None = None) -> Any:
    """The checkpoint `source` set up for the recipe's method: transformers' model or, with adapters, PEFT's around it.

    Call it on every rank, after `arguments` were made: their existence makes loading partition the model under ZeRO-3.
    Raises PollardError where the method does not reach what it should in every block.
    """
    settings = recipe.finetuning
    method = METHODS[settings.method]
    loaded = method.load(recipe, arguments, source, revision)
    total = sum(_count(parameter) for parameter in loaded.model.parameters())
    model = method.set_up(loaded, settings.lora)
    check_reach(model, loaded.blocks, method, settings.lora)
    trained = count_trainable(model, loaded.blocks, loaded.new)
    number = sum(trained.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in trained.items())
    say(f"  {method.name}: trains {number:,} parameters ({number / total:.2%} of the model's {total:,}): {parts}")
    if settings.router_gradient == "all":
        train_routers_on_all_experts(loaded.model, loaded.blocks)
        experts, active = loaded.blocks[0].expert_count, loaded.blocks[0].experts_per_token
        say(f"  routers learn from all experts: every backward pass computes the {experts - active} that a token did not choose")
    if "learning_rate" not in settings.trainer:
        reason = f": {method.learning_rate_reason}" if method.learning_rate_reason else ""
        say(f"  learning rate {method.learning_rate:g} (auto{reason})")
    return model


def count_trainable(model: nn.Module, blocks: list[MoEBlock], new: Mapping[str, Sequence[int]] | None = None) -> Counter[str]:
    """Trainable parameters of experts, routers and other layers; `blocks` are those found before adapters were added, `new` the
    experts whose rows alone train."""
    counts = Counter({"experts": 0, "routers": 0, "other layers": 0})
    rows = {row.name: row.trained for block in blocks if new for row in row_parameters(block, new[block.name])}
    for name, parameter in _trainable(model):
        counts[_part(name, blocks)] += rows.get(name, _count(parameter))
    return counts


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n.removeprefix(PEFT_PREFIX), p) for n, p in model.named_parameters() if p.requires_grad]


def _part(name: str, blocks: list[MoEBlock]) -> str:
    if any(name.startswith(f"{block.experts_name}.") for block in blocks):
        return "experts"
    return "routers" if any(name.startswith(f"{block.router_path}.") for block in blocks) else "other layers"


def _count(parameter: Any) -> int:
    """The numbers of a parameter, also of one that ZeRO-3 has partitioned or that is stored in 4 bits."""
    quantized = getattr(parameter, "quant_state", None)
    return prod(quantized.shape) if quantized else getattr(parameter, "ds_numel", parameter.numel())


def freeze_all_but(model: nn.Module, blocks: list[MoEBlock], parts: set[str]) -> None:
    """Leaves only `parts` ("experts", "routers") trainable; what a family has frozen itself stays frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and _part(name, blocks) in parts)


def check_reach(model: nn.Module, blocks: list[MoEBlock], method: RecoveryMethod, lora: LoraRecipe) -> None:
    """Raises PollardError unless in every block exactly what `method.reach` says is trainable."""
    trainable = [name for name, _ in _trainable(model)]
    for block in blocks:
        expected = method.reach(block, lora)
        experts, router = (
            sum(name.startswith(f"{path}.") for name in trainable) for path in (block.experts_name, block.router_path)
        )
        if experts != expected.experts or (router > 0) != expected.router:
            raise PollardError(
                f"finetuning.method {method.name} should train {expected.experts} tensors of the experts of {block.name} and "
                f"{'some' if expected.router else 'none'} of its router, and reaches {[experts, router]}: this family is not "
                "set up rightly. Use another method, and please report this.",
                code="recovery.wrong-reach",
            )
