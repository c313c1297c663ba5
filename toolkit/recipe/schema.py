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

from toolkit.recipe.data import Section, TaskRecipe
from toolkit.recipe.evaluation import EvaluationRecipe
from toolkit.recipe.finetuning import FinetuningRecipe
from toolkit.recipe.off_task import OffTaskData
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.sources import SourceRecipe, all_weights_or_none

MODELS_WITH_REFIT = ["original", "pruned", "refitted", "recovered"]
"""What is evaluated by default where the pruned model is refit."""


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
