"""Train what a grown model has more than the one before: the rows of new experts, and theirs of the routers (MoExtend).

    experts.gate_up_proj [6, 2W, H]      gradient of rows 0 to 3: zero; of rows 4 and 5: as it is
    gate.weight [6, H], gate.bias [6]    the same
    everything else                      frozen

A fused parameter is one tensor to the optimizer, so a hook zeroes the gradient of its old rows. An optimizer that treats each
number by itself, without weight decay, then leaves them where they are, to the last bit. Saving looks whether that is so, and
writes the old checkpoint's own.

Shape legend: E experts, H hidden size, W width.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from toolkit.cuts.checkpoint import write_checkpoint
from toolkit.moe import MoEBlock, checkpoint_folder, find_blocks, load_config, load_model
from toolkit.moe.masking import TOTAL_KEYS
from toolkit.moe.partition import gathered
from toolkit.moe.tensor_files import row_axis
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import Loaded, Reach, RecoveryMethod, TrainedMemory, Training, complete, memory_of_part
from toolkit.recovery.still_optimizers import MIXING, why_it_moves
from toolkit.runtime.distributed import on_main
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import read_provenance, whole_folder

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import Trainer, TrainingArguments

NUMBER_BY_NUMBER = ("adamw_", "paged_adamw", "adagrad", "lion", "paged_lion", "rmsprop", "sgd")
"""How the names of optimizers begin that treat each number by itself: without a gradient it stays. Those of few bits do not."""


class RowParameter(NamedTuple):
    """A parameter with a row per expert, and perhaps more behind them."""

    name: str
    parameter: nn.Parameter
    axis: int
    new: Sequence[int]  # rows

    @property
    def trained(self) -> int:
        """Numbers."""
        return _shape(self.parameter).numel() // _shape(self.parameter)[self.axis] * len(self.new)


def row_parameters(block: MoEBlock, new: Sequence[int]) -> Iterator[RowParameter]:
    """Of the experts and of the router, those that have rows and are not frozen by the family itself."""
    experts = {block.expert_count}
    totals = experts | {getattr(block.router, key) for key in TOTAL_KEYS if hasattr(block.router, key)}
    for path, module, counts in ((block.experts_name, block.experts, experts), (block.router_path, block.router, totals)):
        for name, parameter in module.named_parameters():
            shape = _shape(parameter)
            if len(shape) and shape[axis := row_axis(shape)] in counts and parameter.requires_grad:
                yield RowParameter(f"{path}.{name}", parameter, axis, new)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Also of one that ZeRO-3 has partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def new_experts_of(source: str) -> Mapping[str, Sequence[int]]:
    """By block the places of the new experts, as the folder of a grown checkpoint says. Raises PollardError for any other."""
    new = (read_provenance(checkpoint_folder(source, None)) or {}).get("new")
    if not new:
        raise PollardError(
            f"finetuning.method new trains experts that pruning.grow has added, and {source} is no grown checkpoint. Say "
            "pruning.grow, or take another method.",
            code="recovery.nothing-new",
        )
    return {str(name): [int(place) for place in places] for name, places in new.items()}


class NewExperts(RecoveryMethod):
    name, meaning = "new", "the experts that pruning.grow has added, and their rows of the routers"
    reference = "arXiv 2408.03511"
    saves_frozen_weights = True

    def check(self, recipe: Recipe) -> None:
        """Raises PollardError as well for an optimizer that would move what has no gradient."""
        super().check(recipe)
        trainer = recipe.finetuning.trainer
        decay, optimizer = trainer.get("weight_decay", 0.0), str(trainer.get("optim", "adamw_torch"))
        if decay:
            raise PollardError(
                f"finetuning.trainer.weight_decay {decay} would shrink the first task's experts, which lie in the same tensors: "
                "with finetuning.method new leave it out.",
                code="recovery.moves-old",
            )
        if why := why_it_moves(optimizer) or ("" if optimizer.startswith(NUMBER_BY_NUMBER) else MIXING):
            raise PollardError(
                f"finetuning.trainer.optim {optimizer} {why}, so that it would move the first task's experts: with "
                "finetuning.method new say optim: adamw_torch.",
                code="recovery.moves-old",
            )

    def load(self, recipe: Recipe, arguments: "TrainingArguments", source: str, revision: str | None) -> Loaded:
        new = new_experts_of(source)
        return super().load(recipe, arguments, source, revision)._replace(new=new)

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        found = [row for block in loaded.blocks for row in row_parameters(block, loaded.new[block.name])]
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(False)
        for row in found:
            row.parameter.requires_grad_(True)
            row.parameter.register_hook(partial(_only_rows, row.axis, row.new))  # type: ignore[no-untyped-call]
        return loaded.model

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=len([*block.experts.parameters()]), router=True)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        """The optimizer holds the states of whole tensors."""
        rows = [row for block in find_blocks(model) for row in row_parameters(block, range(block.expert_count))]
        return memory_of_part(model, sum(row.parameter.numel() for row in rows))

    def save(self, recipe: Recipe, trainer: "Trainer", model: Any, training: Training) -> None:
        """Writes the checkpoint that training began with, with the trained rows in place of their own. The folder says which
        experts are new, as that one does: another training may go on from it."""
        trained = {name: gathered(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
        dtype = _result_dtype(training.source, model.dtype)
        unset_hf_deepspeed_config()  # or ZeRO-3 would partition the model that rank 0 now loads alone

        def write() -> None:
            stock = load_model(training.source, training.revision, dtype=dtype, skipping=False)
            new = new_experts_of(training.source)
            for block in find_blocks(stock):
                for row in row_parameters(block, new[block.name]):
                    _put_rows(row, trained[row.name])
            with whole_folder(training.target, training.facts | {"new": new}) as folder:
                write_checkpoint(stock, folder)
                complete(stock, folder, training, sum(parameter.numel() for parameter in stock.parameters()))

        on_main(write)


def _only_rows(axis: int, new: Sequence[int], gradient: torch.Tensor) -> torch.Tensor:
    """The gradient, zero but for the rows `new` of `axis`."""
    index = torch.tensor(new, device=gradient.device)
    return torch.zeros_like(gradient).index_copy_(axis, index, gradient.index_select(axis, index))


def _result_dtype(source: str, trained: torch.dtype) -> str:
    """ "checkpoint" where the numbers that were trained fit into the checkpoint's own types; else the wider type."""
    stored = load_config(source).dtype or torch.float32
    wider = torch.promote_types(stored, trained)
    return "checkpoint" if wider == stored else str(wider).removeprefix("torch.")


@torch.no_grad()
def _put_rows(row: RowParameter, trained: torch.Tensor | None) -> None:
    """Puts the trained rows into the old checkpoint's parameter. Raises PollardError where others were moved by the training: the
    model that was trained is then not the one that would be saved."""
    assert trained is not None
    index = torch.tensor(row.new)
    rest = torch.tensor([at for at in range(row.parameter.shape[row.axis]) if at not in row.new])
    before, after = (tensor.index_select(row.axis, rest).to(trained.dtype) for tensor in (row.parameter, trained))
    if not torch.equal(before, after):
        raise PollardError(
            f"Training has moved rows of {row.name} that are not new, by up to {(before - after).abs().max():.3g}. Does a "
            "DeepSpeed configuration of your own name an optimizer, or a weight decay? Leave these out: finetuning.zero=2.",
            code="recovery.old-moved",
        )
    row.parameter.index_copy_(row.axis, index, trained.index_select(row.axis, index).to(row.parameter.dtype))
