"""What a method of fine-tuning trains, and what it holds frozen, in numbers read off the meta device."""

from torch import nn

from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.training_memory import TrainingModel
from toolkit.moe import decoder_linears, expert_weights, find_blocks
from toolkit.recipe.schema import FinetuningRecipe, LoraRecipe
from toolkit.recipe.trainer_defaults import TAKEN_FOR_EXPERTS

# Bytes of a weight in NF4: four bits, an 8-bit scale for every 64 weights, and a float32 for every 256 scales
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def training_model(settings: FinetuningRecipe, model: ModelSize) -> TrainingModel:
    """What `finetuning.method` trains of `model`, which is in the dtype that is trained in.

    Raises PollardError where the experts cannot be adapted.
    """
    everything, width, quantized = model.parameters, model.weight_bytes, settings.method == "qlora"
    if settings.method in ("lora", "qlora"):
        trained = _adapters(model, settings.lora)
        frozen = everything * width
        if quantized:
            frozen -= round(_quantized(model) * (width - NF4_BYTES))
    else:
        trained = {"full": everything, "router": model.routers, "experts": model.routers + model.experts}[settings.method]
        frozen = (everything - trained) * width
    saves_frozen = settings.method in ("router", "experts")  # DeepSpeed leaves out what is frozen for adapters only
    return TrainingModel(everything, model.hidden_size, model.largest_layer, trained, frozen, quantized, saves_frozen)


def _adapters(size: ModelSize, lora: LoraRecipe) -> int:
    blocks, model = find_blocks(size.model), size.model
    sides = 0  # in + out of every adapted matrix
    for block in blocks:
        for name in expert_weights(block):
            experts, one, other = getattr(block.experts, name).shape
            sides += experts * (one + other)
    for name, linear in decoder_linears(model, blocks).items():
        if name.rpartition(".")[2] not in TAKEN_FOR_EXPERTS:
            sides += linear.in_features + linear.out_features
    return lora.rank * sides + (size.routers if lora.router else 0)


def _quantized(size: ModelSize) -> int:
    """Weights that qlora holds in four bits: of the experts and of the decoder's linear layers."""
    blocks = find_blocks(size.model)
    linears: list[nn.Linear] = list(decoder_linears(size.model, blocks, shared=True).values())
    in_experts = sum(getattr(block.experts, name).numel() for block in blocks for name in expert_weights(block))
    return in_experts + sum(linear.weight.numel() for linear in linears)
