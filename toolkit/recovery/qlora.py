"""QLoRA (arXiv 2305.14314): LoRA on a base whose experts and linear layers are held in four bits (NF4).

What bitsandbytes itself does for it stands in toolkit/recovery/quantize.py, which is imported when a training begins.
"""

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from toolkit.moe import decoder_linears, expert_weights, find_blocks
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.lora import Lora
from toolkit.recovery.method import Loaded, TrainedMemory, Training
from toolkit.runtime.distributed import device

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import TrainingArguments

# Bytes of a weight in NF4: four bits, an 8-bit scale for every 64 weights, and a float32 for every 256 scales
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class QLora(Lora):
    name = "qlora"
    meaning = "the adapters of lora, on a base in 4 bits"
    reference = "arXiv 2305.14314"
    packages = ("peft", "bitsandbytes")
    loads_in_turns = True

    def load(self, recipe: Recipe, arguments: "TrainingArguments", source: str, revision: str | None) -> Loaded:
        """Quantized on each rank's own device; ZeRO-3 partitions it when training begins, for NF4 needs whole weights."""
        from toolkit.recovery.quantize import load_quantized  # bitsandbytes takes seconds to import

        return load_quantized(recipe, arguments, source, revision)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        blocks = find_blocks(model)
        linears = decoder_linears(model, blocks, shared=True).values()
        quantized = sum(getattr(block.experts, name).numel() for block in blocks for name in expert_weights(block))
        quantized += sum(linear.weight.numel() for linear in linears)
        trained, frozen = super().memory(model, lora)
        return TrainedMemory(trained, frozen - round(quantized * (model.dtype.itemsize - NF4_BYTES)))

    def base(self, recipe: Recipe, arguments: "TrainingArguments", training: Training) -> PreTrainedModel:
        """With its weights rounded as NF4 has them: what the adapter was trained on."""
        from toolkit.recovery.quantize import load_to_round, round_to_nf4  # bitsandbytes takes seconds to import

        stock = load_to_round(recipe, arguments, training.source, training.revision)
        round_to_nf4(stock, find_blocks(stock), device())
        return stock
