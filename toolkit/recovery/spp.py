"""SPP (arXiv 2405.16057): frozen weights times learned row and column factors, by which every zero stays one.

    W' = W + s · W ⊙ repeat(α, out / r) ⊙ β        W [out, in], α [r, in]: each of its rows for out / r rows of W; β [out, 1]

the paper's equation 5, with r = 16, s = 2 and the rate of the authors' code. α begins at random, β at zero, and so W' at W.
Trained are α and β of every expert and of the decoder's other linear layers; at the end W' is written, a stock checkpoint.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from toolkit.cuts.checkpoint import write_checkpoint
from toolkit.moe import (
    MoEBlock,
    blocks_in,
    decoder_linears,
    expert_weights,
    gathered,
    load_config,
    load_model,
    meta_model,
    sizes,
)
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import Loaded, Reach, RecoveryMethod, TrainedMemory, Training, complete
from toolkit.runtime.distributed import on_main
from toolkit.runtime.signed_folders import whole_folder

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import Trainer

ROWS = 16  # r
SCALE = 2.0  # s


class Factors(nn.Module):
    """W -> W'; of one matrix, or of the same matrix of every expert, [E, out, in] or `transposed` [E, in, out]."""

    def __init__(self, shape: torch.Size, transposed: bool, like: torch.Tensor) -> None:
        super().__init__()
        self.transposed = transposed
        *experts, outputs, inputs = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
        bound = 1 / math.sqrt(inputs)
        alpha = torch.empty(*experts, min(ROWS, outputs), inputs, dtype=like.dtype, device=like.device)
        self.alpha = nn.Parameter(alpha.uniform_(-bound, bound))
        self.beta = nn.Parameter(alpha.new_zeros(*experts, outputs, 1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        outputs, rows = self.beta.shape[-2], self.alpha.shape[-2]
        repeated = torch.arange(outputs, device=weight.device) * rows // outputs  # also where r divides out with a rest
        factor = SCALE * self.alpha.index_select(-2, repeated) * self.beta
        return weight + weight * (factor.mT if self.transposed else factor)


class Spp(RecoveryMethod):
    name = "spp"
    meaning = "factors of the rows and columns of frozen weights, by which zeros stay zeros"
    reference = "arXiv 2405.16057"
    learning_rate = 4e-3
    learning_rate_reason = "as published for these factors"
    saves_frozen_weights = keeps_zeros = True
    refuses_keep_zeros = "method spp keeps every zero by itself: leave it out"

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        for block in blocks_in(meta_model(load_config(recipe.model.path, recipe.model.revision))):
            expert_weights(block)  # raises where the experts hold something else

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        loaded.model.requires_grad_(False)
        put_factors(loaded.model, loaded.blocks)
        return loaded.model

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=4, router=False)  # alpha and beta of both matrices

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        trained = 0
        for module, name, transposed in _matrices(model, blocks_in(model)):
            *experts, one, other = getattr(module, name).shape
            outputs, inputs = (other, one) if transposed else (one, other)
            trained += math.prod(experts) * (min(ROWS, outputs) * inputs + outputs)
        return TrainedMemory(trained, sizes(model).parameters * model.dtype.itemsize)

    def save(self, recipe: Recipe, trainer: "Trainer", model: Any, training: Training) -> None:
        """Writes the checkpoint that training began with, its weights times the factors."""
        weights = {name: gathered(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
        unset_hf_deepspeed_config()  # or ZeRO-3 would partition the model that rank 0 now loads alone

        def write() -> None:
            stock = load_model(training.source, training.revision, dtype=recipe.model.dtype, skipping=False)
            needed = sum(parameter.numel() for parameter in stock.parameters())
            blocks = blocks_in(stock)
            put_factors(stock, blocks)
            stock.load_state_dict({name: tensor for name, tensor in weights.items() if tensor is not None}, strict=False)
            take_factors_in(stock)
            with whole_folder(training.target, training.facts) as folder:
                write_checkpoint(stock, folder)
                complete(stock, folder, training, needed)

        on_main(write)


def _matrices(model: PreTrainedModel, blocks: list[MoEBlock]) -> Iterator[tuple[nn.Module, str, bool]]:
    """Module, parameter and whether it is stored transposed: of the experts, and of the decoder's other linear layers."""
    for block in blocks:
        for name in expert_weights(block):
            yield block.experts, name, bool(block.experts.is_transposed)
    for linear in decoder_linears(model, blocks, shared=True).values():
        yield linear, "weight", False


def put_factors(model: PreTrainedModel, blocks: list[MoEBlock]) -> None:
    """Makes every matrix W', in place: at first the same numbers."""
    for module, name, transposed in list(_matrices(model, blocks)):
        weight = getattr(module, name)
        factors = Factors(getattr(weight, "ds_shape", weight.shape), transposed, weight)
        # Unsafe: under ZeRO-3 there is no weight yet to try the factors on
        parametrize.register_parametrization(module, name, factors, unsafe=True)


@torch.no_grad()
def take_factors_in(model: PreTrainedModel) -> None:
    """Leaves W' where W was, and no factors."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
