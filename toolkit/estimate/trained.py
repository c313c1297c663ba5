"""What a method of fine-tuning trains, and what it holds frozen, in numbers read off the meta device."""

from torch import nn

from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.training import Trained
from toolkit.moe import decoder_linears, expert_weights, find_blocks
from toolkit.recipe.schema import LoraRecipe, Recipe
from toolkit.recipe.trainer_defaults import TAKEN_FOR_EXPERTS

# Bytes of a weight in NF4: four bits, an 8-bit scale for every 64 weights, and a float32 for every 256 scales
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def trained_by(recipe: Recipe, pruned: ModelNumbers) -> Trained:
    """`pruned` in the dtype that is trained in. Raises PollardError where the experts cannot be adapted."""
    settings, everything, width = recipe.finetuning, pruned.parameters, pruned.weight_bytes
    if settings.method in ("lora", "qlora"):
        trained = _adapters(pruned, settings.lora)
        frozen = everything * width
        if settings.method == "qlora":
            frozen -= round(_quantized(pruned) * (width - NF4_BYTES))
    else:
        trained = {"full": everything, "router": pruned.routers, "experts": pruned.routers + pruned.experts}[settings.method]
        frozen = (everything - trained) * width
    return Trained(everything, pruned.hidden_size, pruned.largest_layer, trained, frozen, settings.method == "qlora")


def _adapters(pruned: ModelNumbers, lora: LoraRecipe) -> int:
    blocks, model = find_blocks(pruned.model), pruned.model
    sides = 0  # in + out of every adapted matrix
    for block in blocks:
        for name in expert_weights(block):
            experts, one, other = getattr(block.experts, name).shape
            sides += experts * (one + other)
    for name, linear in decoder_linears(model, blocks).items():
        if name.rpartition(".")[2] not in TAKEN_FOR_EXPERTS:
            sides += linear.in_features + linear.out_features
    return lora.rank * sides + (pruned.routers if lora.router else 0)


def _quantized(pruned: ModelNumbers) -> int:
    """Weights that qlora holds in four bits: of the experts and of the decoder's linear layers."""
    blocks = find_blocks(pruned.model)
    linears: list[nn.Linear] = list(decoder_linears(pruned.model, blocks, shared=True).values())
    in_experts = sum(getattr(block.experts, name).numel() for block in blocks for name in expert_weights(block))
    return in_experts + sum(linear.weight.numel() for linear in linears)
