"""What a method of fine-tuning (`finetuning.method`) decides: what of the model trains, and how the result is written.

A method is a subclass of RecoveryMethod and one line in METHODS (toolkit/recovery/methods.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN  # by which PEFT redirects
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from toolkit.cuts.checkpoint import check_whole, complete_checkpoint, write_checkpoint
from toolkit.moe import (
    MoEBlock,
    blocks_in,
    check_loaded,
    check_packable,
    check_router_gradient,
    checkpoint_folder,
    decoder_linears,
    is_partitioned,
    load_config,
    load_model,
    meta_model,
    sizes,
    write_partitioned,
)
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import is_main, on_main
from toolkit.runtime.errors import PollardError
from toolkit.runtime.run_paths import RunPaths
from toolkit.runtime.signed_folders import provenance, whole_folder

if TYPE_CHECKING:  # takes seconds to import; a run that is done needs no trainer
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True)
class Training:
    """Where a training starts, and where its files go."""

    source: str  # a checkpoint's folder or hub id
    revision: str | None
    target: Path
    adapter: Path
    checkpoints: Path
    log: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What the trained checkpoint's folder is signed with."""
        return provenance("fine-tuned checkpoint", self.source, self.revision)


def training_of(recipe: Recipe, run: RunPaths, role: Role, student_round: int | None = None) -> Training:
    """The pruned model, refit where the recipe says so, is trained into `recovered/`; the original, with the same recipe, into
    `control/`. Where the student writes answers in several rounds (the last unless given), each but the first starts from what
    the one before has left in `student/<round>/recovered/`."""
    if role == Role.CONTROL:
        model, checkpoints = recipe.model, run.checkpoints / role
        return Training(model.path, model.revision, run.control, run.control_adapter, checkpoints, run.control_log)
    start, last = run.refitted if recipe.pruning.refit else run.pruned, recipe.finetuning.student_rounds
    number = student_round or last
    if number > 1:
        start = run.student_round(number - 1).recovered
    if number < last:
        left = run.student_round(number)
        checkpoints = run.checkpoints / f"student-{number}"
        return Training(str(start), None, left.recovered, left.adapter, checkpoints, left.training_log)
    return Training(str(start), None, run.recovered, run.adapter, run.checkpoints / role, run.training_log)


class Loaded(NamedTuple):
    """A model in memory; `blocks` and `linears` (the decoder's other linear layers, by name) before any adapter. `new`: by block
    the places of experts that it was grown by, where these alone train."""

    model: PreTrainedModel
    blocks: list[MoEBlock]
    linears: Sequence[str]
    new: Mapping[str, Sequence[int]] = {}


# PEFT reads these names, wherever they stand, as the experts and router of transformers 4, and redirects them to the fused
# experts at twice the rank: dense layers' MLPs go without adapters
READ_AS_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def adaptable(model: PreTrainedModel, blocks: Sequence[MoEBlock], linears: Iterable[str]) -> list[str]:
    """Of the model's linear layers, by name, those that PEFT can give adapters: in a dense model all, unless its family has
    experts, too."""
    redirected = blocks or model.config.model_type in _MODEL_TO_CONVERSION_PATTERN
    return [name for name in linears if not redirected or name.rpartition(".")[2] not in READ_AS_EXPERTS]


class Reach(NamedTuple):
    """What a method trains in one MoE block."""

    experts: int  # tensors
    router: bool


class TrainedMemory(NamedTuple):
    """What a method trains and what it holds frozen, for estimates."""

    trained: int  # parameters; adapters are counted beside the model's own
    frozen_bytes: int


class RecoveryMethod(ABC):
    """All that is known about one method. The defaults are those of a method without adapters."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    """One line for people."""
    reference: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    """What must be installed beside the toolkit's own requirements."""
    adapters: ClassVar[bool] = False
    """Whether `finetuning.lora` belongs to it."""
    learning_rate: ClassVar[float] = 2e-5
    """Where the recipe gives none."""
    learning_rate_reason: ClassVar[str] = ""
    loads_in_turns: ClassVar[bool] = False
    """Every rank loads the whole model, one after the other, and holds it whole at first, whatever the ZeRO stage."""
    saves_frozen_weights: ClassVar[bool] = False
    """DeepSpeed's checkpoints hold the frozen weights too: it leaves them out for adapters only."""
    trains_routers: ClassVar[bool] = False
    """Whether routers train as they are, without adapters: what `finetuning.router_gradient` is for."""
    keeps_zeros: ClassVar[bool] = False
    """Whether zeros of the weights stay zeros whatever the recipe says."""
    refuses_keep_zeros: ClassVar[str] = ""
    """Why `finetuning.keep_zeros` cannot be asked of it."""
    lighter: ClassVar[tuple[str, ...]] = ()
    """Methods to try where this one does not fit into memory."""

    def check(self, recipe: Recipe) -> None:
        """Raises PollardError where the method cannot work: a package is missing, or the model does not allow it."""
        for package in self.packages:
            if find_spec(package) is None:
                raise PollardError(
                    f"finetuning.method {self.name} needs {package}, which is not installed: pip install {package}",
                    code="recovery.missing-package",
                )
        if recipe.finetuning.router_gradient == "all":
            if not self.trains_routers:
                raise PollardError(
                    f"finetuning.router_gradient: all is for routers that train as a whole, and with method {self.name} they do "
                    "not: say method: full, experts or router, or leave it out.",
                    code="recovery.no-routers",
                )
            check_router_gradient(meta_model(load_config(recipe.model.path, recipe.model.revision)))
        if recipe.finetuning.packing:
            check_packable(meta_model(load_config(recipe.model.path, recipe.model.revision)))

    def load(self, recipe: Recipe, arguments: "TrainingArguments", source: str, revision: str | None) -> Loaded:
        """The checkpoint `source`, on every rank; under ZeRO-3 its parameters are partitioned as they load."""
        model = load_model(source, revision, recipe.model.dtype, skipping=False)
        check_loaded(model, source, revision)
        blocks = blocks_in(model)
        return Loaded(model, blocks, [*decoder_linears(model, blocks)])

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        """The model with the right parameters trainable: transformers' own or, with adapters, PEFT's around it."""
        return loaded.model

    @abstractmethod
    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        """What must be trainable in `block` after `set_up`."""

    @abstractmethod
    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        """Of a model on the meta device, in the dtype it trains in. Raises PollardError where it cannot be trained so."""

    def save(self, recipe: Recipe, trainer: "Trainer", model: Any, training: Training) -> None:
        """Writes a stock checkpoint, under every ZeRO stage, with the companion files of the one it began as. Every rank
        takes part. Raises PollardError where the checkpoint does not come out whole."""
        needed = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())  # tied ones once
        if is_partitioned(model):
            with whole_folder(training.target, training.facts) if is_main() else nullcontext(training.target) as folder:
                write_partitioned(model, folder)
                unset_hf_deepspeed_config()  # or ZeRO-3 would partition what is opened to look at it
                on_main(lambda: complete(model, folder, training, needed))
            return
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)

        def write() -> None:
            tied = getattr(model, "all_tied_weights_keys", {})  # stored once, as in every stock checkpoint
            with whole_folder(training.target, training.facts) as folder:
                write_checkpoint(model, folder, {name: tensor for name, tensor in weights.items() if name not in tied})
                complete(model, folder, training, needed)

        on_main(write)


def complete(model: PreTrainedModel, folder: Path, training: Training, needed: int) -> None:
    """Writes everything of the source checkpoint but the weights."""
    check_whole(folder, needed)
    model.config.architectures = [type(model).__name__]  # as save_pretrained does
    complete_checkpoint(checkpoint_folder(training.source, training.revision), folder, model.config, model.dtype)


def memory_of_part(model: PreTrainedModel, trained: int) -> TrainedMemory:
    """Of training `trained` of the model's own parameters, the rest frozen."""
    return TrainedMemory(trained, (sizes(model).parameters - trained) * model.dtype.itemsize)


def parameters_of(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
