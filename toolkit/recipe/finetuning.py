"""The keys of `finetuning`: what is trained, on what, and by which loss (a part of toolkit/recipe/schema.py)."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.choices import METHODS_WITH_ADAPTERS, Method
from toolkit.recipe.data import OWN_FUNCTION, Section
from toolkit.recipe.sources import TrainingSourceRecipe, all_weights_or_none

ZERO_PRESETS = (0, 1, 2, 3, "3-offload")


class DistillationRecipe(Section):
    """(1 − weight) · cross entropy + weight · temperature² · KL(teacher ‖ student) + hidden · seam loss, on completion tokens."""

    weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher's loss; the rest is that of the data's. 0 with `hidden` only: cross entropy and seam loss."""
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Temperature of both softmaxes. Cached values depend on it; changing it rebuilds the cache."""
    hidden: float = Field(default=0.0, ge=0, allow_inf_nan=False, exclude_if=lambda hidden: not hidden)
    """Weight of the seam loss, where `pruning.layers` takes layers out: behind every gap the hidden states are to be those of the
    original, in direction and length (0.1 to start; docs/recovery.md). Default: 0, none."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if not self.weight and not self.hidden:
            raise ValueError("weight 0 learns nothing from the teacher: give it some, say hidden: 0.1, or leave the teacher out")
        return self


class LoraRecipe(Section):
    """The adapters of the methods lora and qlora."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of every adapted matrix."""
    alpha: int | float = Field(default=32, gt=0)
    """The update is scaled by alpha / rank."""
    experts: Literal["each", "shared"] = Field(default="each", exclude_if=lambda value: value == "each")
    """each: every expert has an update of its own; shared: all experts of a block have the same one, of this rank (rank times the
    number of experts takes as many numbers as `each` does)."""
    router: bool = False
    """Train the routers as well, without adapters, since they are small."""


class FinetuningRecipe(Section):
    """Fine-tuning of the pruned model with TRL's SFTTrainer under DeepSpeed."""

    method: Method = "full"
    """What is trained. full: all parameters; lora: adapters on experts and attention; qlora: the same on a 4-bit base; router:
    the routers; experts: experts and routers; new: the experts that pruning.grow adds, alone; spp: factors of a sparse
    checkpoint's rows and columns (docs/recovery.md)."""
    lora: LoraRecipe = LoraRecipe()
    keep_zeros: bool = Field(default=False, exclude_if=lambda value: value is False)
    """Weights that are zero stay zero: for a checkpoint that was made sparse elsewhere. For full, experts and new; with spp they
    always do."""
    router_gradient: Literal["active", "all"] = Field(default="active", exclude_if=lambda value: value == "active")
    """Which experts tell a router what it should have chosen. active: those that were; all: every kept expert, each of which then
    computes every token in the backward pass. For full, experts and router (docs/recovery.md)."""
    packing: bool = Field(default=False, exclude_if=lambda value: value is False)
    """Put the examples of a batch into as few rows as they need, one behind the other, instead of padding each to the longest. A
    step learns from the same examples as without; refused where a model would not keep them apart (docs/recovery.md)."""
    loss: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """A loss of your own instead of cross entropy: a function of logits [N, V] and targets [N] that returns [N],
    my_file.py:my_loss or my_module:my_loss (docs/recovery.md)."""
    zero: int | str = 2
    """ZeRO stage (0, 1, 2, 3, 3-offload), or the path of a DeepSpeed JSON file."""
    max_length: int = Field(default=1024, ge=2)
    """Maximum tokens of an example. Longer ones are left out and reported."""
    examples: int | None = Field(default=None, ge=1)
    """Number of examples from the task, or from each source of a mix that has no `examples` of its own. Default: all."""
    select_by: Literal["last", "dev_loss", "dev_accuracy"] = "last"
    """Which checkpoint is the result: the last, or the best on the dev slice (measured at every save)."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many consecutive measurements on the dev slice without improvement."""
    data: list[TrainingSourceRecipe] | None = Field(default=None, min_length=1)
    """A mix of sources instead of the task's training split. Examples that overlap with the test set are removed; `weight` is a
    source's share of the training examples (docs/recovery.md)."""
    teacher: Literal["original"] | None = None
    """Train on the original model's logits as well. They are computed once and kept in the run directory."""
    distillation: DistillationRecipe = DistillationRecipe()
    trainer: dict[str, Any] = Field(default={})
    """Any field of TRL's SFTConfig (learning_rate, max_steps, optim: adamw_bnb_8bit, …)."""

    @property
    def student_sources(self) -> list[TrainingSourceRecipe]:
        """The sources whose text the student writes."""
        return [source for source in self.data or () if source.written_by_student]

    @property
    def student_rounds(self) -> int:
        """How many trainings are one after the other on what the student writes; 0 where it writes nothing."""
        return max((source.rounds for source in self.student_sources), default=0)

    @field_validator("zero", mode="before")
    @classmethod
    def _preset_or_file(cls, zero: Any) -> Any:
        if isinstance(zero, bool) or (zero not in ZERO_PRESETS and not str(zero).endswith(".json")):
            raise ValueError(f"{zero!r} is neither a ZeRO preset (0, 1, 2, 3, 3-offload) nor a path to a .json file")
        return zero

    @field_validator("loss", mode="after")
    @classmethod
    def _loss_is_a_function(cls, loss: str | None) -> str | None:
        if loss is None or OWN_FUNCTION.fullmatch(loss):
            return loss
        raise ValueError(f"{loss!r} names no function: say my_file.py:my_loss, or my_module:my_loss")

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if self.loss and self.teacher:
            raise ValueError("loss and teacher both say what is learned: leave one of them out")
        return self

    @model_validator(mode="after")
    def _stopping_needs_a_measure(self) -> Self:
        if self.early_stopping and self.select_by == "last":
            raise ValueError("early_stopping needs something to stop by: say select_by: dev_loss (or dev_accuracy)")
        return self

    _weights = field_validator("data", mode="after")(all_weights_or_none)

    @model_validator(mode="after")
    def _distillation_has_a_teacher(self) -> Self:
        if self.teacher is None and self.distillation != DistillationRecipe():
            raise ValueError("distillation says how to learn from a teacher, and there is none: add `teacher: original`")
        return self

    @model_validator(mode="after")
    def _student_has_a_teacher(self) -> Self:
        written = self.student_sources
        if written and (self.teacher is None or not self.distillation.weight):
            missing = "distillation.weight above 0" if self.teacher else "`teacher: original`"
            raise ValueError(
                f"what the student writes teaches only by what the teacher says of it (data, writer: student): it needs {missing}"
            )
        if len({source.rounds for source in written}) > 1:
            raise ValueError("every training has answers of every source that the student writes: give these the same rounds")
        return self

    @model_validator(mode="after")
    def _adapters_where_there_are_some(self) -> Self:
        if self.lora != LoraRecipe() and self.method not in METHODS_WITH_ADAPTERS:
            raise ValueError(f"lora says how adapters are made, and method {self.method} makes none: say method: lora, or qlora")
        return self
