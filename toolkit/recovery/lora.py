"""LoRA (arXiv 2106.09685): adapters on the experts and on the decoder's other linear layers, merged at the end.

What PEFT itself does for it stands in toolkit/recovery/adapters.py, which is imported when a training begins.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedModel

from toolkit.moe import (
    UNFUSED,
    MoEBlock,
    blocks_in,
    decoder_linears,
    expert_weights,
    find_blocks,
    load_config,
    load_model,
    meta_model,
    sizes,
)
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import Loaded, Reach, RecoveryMethod, TrainedMemory, Training, adaptable, parameters_of

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import Trainer, TrainingArguments


class Lora(RecoveryMethod):
    name = "lora"
    meaning = "adapters on the experts and the decoder's linear layers, merged at the end"
    reference = "arXiv 2106.09685"
    packages: ClassVar[tuple[str, ...]] = ("peft",)
    adapters = True
    refuses_keep_zeros = (
        "the update of an adapter has no zeros, and without them it would not be what was trained: say method: spp, or full"
    )
    # LoRA learns best at about ten times the rate of full fine-tuning (LoRA Without Regret, Thinking Machines, 2025)
    learning_rate = 2e-4
    learning_rate_reason = "adapters learn at ten times the rate of full fine-tuning"

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        for block in find_blocks(meta_model(load_config(recipe.model.path, recipe.model.revision))):
            expert_weights(block)  # raises where the experts cannot be adapted

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        from toolkit.recovery.adapters import adapt  # peft takes seconds to import

        return adapt(loaded.model, loaded.blocks, loaded.linears, lora)

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        weights = 2 * (block.expert_count if hasattr(block.experts, UNFUSED) and lora.experts == "each" else 1)
        return Reach(experts=2 * weights, router=lora.router)  # a pair of matrices for each weight

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        blocks = blocks_in(model)
        sides = 0  # in + out of every adapted matrix
        for block in blocks:
            for name in expert_weights(block):
                experts, one, other = getattr(block.experts, name).shape
                sides += (experts if lora.experts == "each" else 1) * (one + other)
        linears = decoder_linears(model, blocks)
        sides += sum(linears[name].in_features + linears[name].out_features for name in adaptable(model, blocks, linears))
        routers = parameters_of([block.router for block in blocks]) if lora.router else 0
        return TrainedMemory(lora.rank * sides + routers, sizes(model).parameters * model.dtype.itemsize)

    def save(self, recipe: Recipe, trainer: "Trainer", model: Any, training: Training) -> None:
        """Writes the trained adapter, and the checkpoint that training began with, the adapter added in."""
        from toolkit.recovery.adapters import save_merged  # peft takes seconds to import

        save_merged(model, recipe.finetuning.lora, lambda: self.base(recipe, trainer.args, training), training)

    def base(self, recipe: Recipe, arguments: "TrainingArguments", training: Training) -> PreTrainedModel:
        """The stock model, whole on the CPU, that the adapter is merged into."""
        return load_model(training.source, training.revision, dtype=recipe.model.dtype, skipping=False)
