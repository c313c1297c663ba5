"""Every key of a recipe with its type, default and meaning (toolkit/recipe/file.py reads the YAML).

Starts in an instant: neither torch nor trl is imported here, so the names that other rooms register (criteria, methods,
tasks, scorers) come from a generated file, toolkit/recipe/choices.py.
"""

import re
from typing import Any, Literal, LiteralString, Self, cast

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from toolkit.recipe.choices import METHODS_WITH_ADAPTERS, Method
from toolkit.recipe.data import OffTaskData, Section, SourceRecipe, TaskRecipe, TrainingSourceRecipe, all_weights_or_none
from toolkit.recipe.evaluation import EvaluationRecipe
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.roles import Role

MODELS_WITH_REFIT = ["original", "pruned", "refitted", "recovered"]
"""What is evaluated by default where the pruned model is refit."""
ZERO_PRESETS = (0, 1, 2, 3, "3-offload")


class ModelRecipe(Section):
    """The original model. `model: some/id` is short for `model: {path: some/id}`."""

    path: str
    """A folder with a transformers checkpoint, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on CPU (bfloat16 is slow there), the checkpoint's dtype on GPU."""
    placement: Literal["auto", "copies", "spread", "zero3"] = "auto"
    """Where a model is held for inference. copies: one per rank; spread: one, its layers over the first node's GPUs; zero3:
    partitioned over all ranks (with the settings and offload of `finetuning.zero` if that is stage 3); auto: the first of
    these that fits. Results do not depend on it."""


class CalibrationRecipe(Section):
    """Collects statistics of the experts on the task's training examples, or on a mix of sources."""

    examples: int = Field(default=512, ge=1)
    """Number of examples from the task, or from each source of a mix that has no `examples` of its own."""
    data: list[SourceRecipe] | None = Field(default=None, min_length=1)
    """A mix of sources instead of the task. Each counts by its weight, however long its texts are (docs/methods.md)."""
    self_generated: bool = False
    """Calibrate on the original model's own answers to the tasks' prompts, if scored correct."""
    batch_size: int = Field(default=8, ge=1)
    """Examples per forward pass, on each rank. `reconstruction` measures one error per batch."""
    max_length: int = Field(default=1024, ge=2)
    """Maximum tokens of an example. Longer ones are left out and reported (plain text is split instead)."""

    _weights = field_validator("data", mode="after")(all_weights_or_none)


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


class SweepRecipe(Section):
    """Settings of `pollard sweep`, which compares prunings. The prunings are given on the command line."""

    off_task: OffTaskData = None
    """A second task or text to measure the pruned models on: what pruning for one task costs on another. true: the texts that
    come with Pollard, as for `evaluation.off_task`."""
    compression: str | None = None
    """Compress the kept experts' weights as well, by what no stock reader loads, so that it is measured and never written:
    low_rank:0.5 (two factors with that share of the numbers) or 2:4 (two of four neighbours are zero) (docs/pruning.md)."""
    allocation: Literal["uniform", "measured"] = Field(default="uniform", exclude_if=lambda value: value == "uniform")
    """measured: every cell that keeps fewer experts is measured with other numbers of them in each block as well, searched on the
    dev loss at the same size, which no stock reader loads (docs/pruning.md)."""

    @field_validator("compression", mode="after")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value in (None, "2:4"):
            return value
        kind, _, share = value.partition(":")
        if kind == "low_rank" and re.fullmatch(r"0?\.\d+", share) and float(share):
            return f"low_rank:{float(share):g}"
        raise ValueError("2:4, or low_rank with the share of the experts' numbers that it leaves, in (0, 1): low_rank:0.5")

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked_for(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Recipes of before do not have the key."""
        return {key: value for key, value in dump(self).items() if key != "compression" or value is not None}


class Recipe(Section):
    """A run: a model, a task, and the settings of every stage."""

    name: str
    """Name of the run. Results are written to runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Random seed of the calibration examples, the order of training, the adapters, and the criterion `random`."""
    model: ModelRecipe
    task: TaskRecipe
    calibration: CalibrationRecipe = CalibrationRecipe()
    pruning: PruningRecipe = PruningRecipe()
    finetuning: FinetuningRecipe = FinetuningRecipe()
    control: bool = False
    """Fine-tune the original with the same settings as well, as an upper bound for the recovered model."""
    evaluation: EvaluationRecipe = EvaluationRecipe()
    sweep: SweepRecipe = SweepRecipe()

    @model_validator(mode="after")
    def _control_has_a_server(self) -> Self:
        if self.control and self.evaluation.backend == "server" and self.evaluation.servers.control is None:
            raise ValueError("no server is named for the control: say evaluation.servers.control, or leave control out")
        return self

    @model_validator(mode="after")
    def _student_writes_for_somebody(self) -> Self:
        finetuning, written = self.finetuning, self.finetuning.student_sources
        if written and self.control and Role.RECOVERED not in self.evaluation.models and not self.pruning.schedule:
            raise ValueError(
                "finetuning.data has answers of the student, and the recipe trains nothing but the control, which has none: add "
                "recovered to evaluation.models, or leave these answers out"
            )
        if self.control and written and len(written) == len(finetuning.data or ()):
            raise ValueError(
                "the control is trained on the same data without what the student writes, and there is nothing else: add a task "
                "to finetuning.data, or leave control out"
            )
        return self

    @model_validator(mode="after")
    def _method_has_experts(self) -> Self:
        dense = self.pruning.form == "dense" or (self.pruning.fit is not None and "dense" in self.pruning.fit.cuts)
        if dense and self.finetuning.method in METHODS_OF_EXPERTS:
            raise ValueError(
                f"finetuning.method {self.finetuning.method} works on experts, and with pruning.form dense there are none: say "
                "method: full, or lora"
            )
        if dense and self.finetuning.lora.experts == "shared":
            raise ValueError("finetuning.lora.experts is for experts, and with pruning.form dense there are none: leave it out")
        if dense and self.finetuning.router_gradient == "all":
            raise ValueError(
                "finetuning.router_gradient is for routers, and with pruning.form dense there are none: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _hidden_states_have_a_gap(self) -> Self:
        if not self.finetuning.distillation.hidden:
            return self
        for key in ("schedule", "fit"):
            if getattr(self.pruning, key) is not None:
                raise ValueError(
                    "finetuning.distillation.hidden: the original is asked once, before the first training, and with "
                    f"pruning.{key} the layers that stay are chosen later, and again and again: leave hidden out, or train the "
                    "last shape in a recipe of its own (keep, width, layers)"
                )
        if self.pruning.layers is None:
            raise ValueError(
                "finetuning.distillation.hidden compares hidden states where layers are gone, and pruning.layers takes none "
                "out: say pruning.layers, or leave hidden out"
            )
        return self

    @model_validator(mode="after")
    def _new_experts_are_there(self) -> Self:
        if self.finetuning.method != "new":
            return self
        if self.pruning.grow is None:
            raise ValueError(
                "finetuning.method new trains the experts that pruning.grow adds, and there is no pruning.grow: say method: "
                "experts, or full"
            )
        if self.control:
            raise ValueError(
                "the control is the original trained alike, and finetuning.method new trains what was added to another model: "
                "leave control out"
            )
        return self

    @model_validator(mode="after")
    def _refitted_model_is_evaluated(self) -> Self:
        """By default, where there is one. Set in place: pydantic wants the model back that it gave."""
        evaluation, refit = self.evaluation, self.pruning.refit
        if refit and "models" not in evaluation.model_fields_set:
            object.__setattr__(self, "evaluation", evaluation.model_copy(update={"models": MODELS_WITH_REFIT}))
        if Role.REFITTED in evaluation.models and not refit:
            raise self._fault("models", "there is no refitted model without a refit: say pruning.refit: true, or leave it out")
        if missing := self.evaluation.without_server:
            raise self._fault("servers", missing)
        return self

    def _fault(self, key: str, message: str) -> ValidationError:
        """Of a key of `evaluation` that another section makes wrong: reported where it stands."""
        kind = PydanticCustomError("value_error", cast(LiteralString, message))
        fault = InitErrorDetails(type=kind, loc=("evaluation", key), input=self.evaluation.model_dump()[key])
        return ValidationError.from_exception_data(type(self).__name__, [fault])

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        if isinstance(values, dict):
            # A section whose keys are all commented out reads as null: its defaults apply
            values = {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}
            for key, field in SHORTHANDS.items():
                if isinstance(values.get(key), str):
                    values[key] = {field: values[key]}
        return values

    @field_validator("name", mode="after")
    @classmethod
    def _name_makes_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError("a name is a folder's: letters, digits, _ . and -, beginning with a letter or digit")
        return name


METHODS_OF_EXPERTS = ("router", "experts", "qlora", "new")
"""Methods of fine-tuning that train, or quantize, experts and routers."""
SHORTHANDS = {"model": "path", "task": "name"}
