"""What to do: every key of a recipe, its type, default and meaning (toolkit/recipe/file.py reads the YAML).

Starts in an instant: neither torch nor trl is imported here, so the names that other rooms register (criteria, methods,
tasks, scorers) come from a generated file, toolkit/recipe/choices.py.
"""

import re
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.choices import CRITERIA_ON_ALL_TOKENS, METHODS_WITH_ADAPTERS, Criterion, Method
from toolkit.recipe.data import DataRecipe, Section, SourceRecipe, TaskRecipe, TrainingSourceRecipe, all_weights_or_none
from toolkit.recipe.evaluation import EvaluationRecipe

ZERO_PRESETS = (0, 1, 2, 3, "3-offload")


class ModelRecipe(Section):
    """The original model. `model: some/id` is short for `model: {path: some/id}`."""

    path: str
    """A folder with a transformers checkpoint, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on CPU (bfloat16 is slow there), the checkpoint's own on GPU."""
    placement: Literal["auto", "copies", "spread", "zero3"] = "auto"
    """Where a model that answers is held: a copy for every rank; one, its layers spread over the first node's GPUs; or in
    parts over all ranks (ZeRO-3, with `finetuning.zero`'s own settings and offload where that is stage 3). auto: copies
    where they fit, else spread, else zero3. Results do not depend on it."""


class CalibrationRecipe(Section):
    """Watching the experts on the task's training examples, or on a mix."""

    examples: int = Field(default=512, ge=1)
    """From the task, and from every source of a mix that does not say its own number."""
    data: list[SourceRecipe] | None = Field(default=None, min_length=1)
    """A mix instead of the task: however long its texts, each source counts by its share (docs/methods.md)."""
    self_generated: bool = False
    """Watch the original model's own answers to the tasks' prompts, those that the scorer finds right."""
    batch_size: int = Field(default=8, ge=1)
    """Examples in a forward pass, on each rank; `reconstruction` adds one error per batch."""
    max_length: int = Field(default=1024, ge=2)
    """Longer examples are left out, and counted (plain text is cut into pieces)."""

    _weights = field_validator("data", mode="after")(all_weights_or_none)


class PruningRecipe(Section):
    """Which experts stay."""

    criterion: Criterion = "weighted_ean"
    """The rule that scores the experts: `pollard criteria` lists them."""
    keep: int | float = 0.5
    """Experts per block: a number, or a fraction in (0, 1)."""
    schedule: list[int] | None = Field(default=None, min_length=2)
    """Prune in rounds, each of them recovered and watched anew: [6, 4, 2]. `keep` is then the last of them."""
    experts_per_token: int | None = Field(default=None, ge=1)
    """How many experts the pruned model activates per token, at most as many as now: as many where enough are kept."""
    tokens: Literal["all", "prompt", "completion"] = "all"
    """Which tokens' statistics decide."""
    mode: Literal["layerwise", "progressive"] = "layerwise"
    """Of `reconstruction`: every block by itself, or one after the other on what the pruned ones before it pass on."""
    skipping: Literal["median"] | float | None = None
    """Skip experts that hardly count while the model runs: of every token's experts after the first, about half (median, as
    published) or a share in (0, 1). Thresholds are found on the model that the run ends with, and evaluated beside it."""

    @model_validator(mode="before")
    @classmethod
    def _schedule_says_keep(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("schedule"), list) and values["schedule"]:
            return {"keep": values["schedule"][-1]} | values
        return values

    @field_validator("keep", mode="before")
    @classmethod
    def _keep_makes_sense(cls, keep: Any) -> Any:
        if isinstance(keep, bool) or not isinstance(keep, int | float):
            raise ValueError("keep must be a number of experts (4) or a fraction of them (0.5)")
        if (isinstance(keep, int) and keep < 1) or (isinstance(keep, float) and not 0 < keep < 1):
            raise ValueError("keep must be an integer of at least 1 or a fraction in (0, 1)")
        return keep

    @field_validator("skipping", mode="before")
    @classmethod
    def _skipping_makes_sense(cls, skipping: Any) -> Any:
        if skipping in (None, "median"):
            return skipping
        if isinstance(skipping, bool) or not isinstance(skipping, int | float) or not 0 < skipping < 1:
            raise ValueError("skipping is median, or the share of the experts after a token's first to skip, in (0, 1)")
        return float(skipping)

    @model_validator(mode="after")
    def _keys_agree(self) -> "PruningRecipe":
        if self.schedule and any(more <= fewer for more, fewer in pairwise(self.schedule)):
            raise ValueError(f"a schedule is numbers of experts that fall from round to round, not {self.schedule}")
        if self.schedule and self.keep != self.schedule[-1]:
            raise ValueError(f"keep {self.keep} is not where the schedule {self.schedule} ends: leave keep out")
        if isinstance(self.keep, int) and (self.experts_per_token or 0) > self.keep:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.keep} experts kept")
        if self.skipping and 1 in (self.keep, self.experts_per_token) and not isinstance(self.keep, float):
            raise ValueError("with one expert per token there is none to skip: leave skipping out")
        if self.criterion in CRITERIA_ON_ALL_TOKENS and self.tokens != "all":
            raise ValueError(f"{self.criterion} compares the block's output on all tokens: say tokens: all")
        return self


class DistillationRecipe(Section):
    """(1 − weight) · cross entropy + weight · temperature² · KL(teacher ‖ student), over completion tokens."""

    weight: float = Field(default=0.5, gt=0, le=1)
    """Of the teacher, against that of the data."""
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Of both softmaxes. The teacher's cache holds what it decides: another temperature is another cache."""


class LoraRecipe(Section):
    """The adapters of the methods lora and qlora."""

    rank: int = Field(default=16, ge=1)
    """Of the update of every adapted matrix; each expert has its own."""
    alpha: float = Field(default=32, gt=0)
    """The update counts alpha / rank times."""
    router: bool = False
    """Train the routers too: whole, since they are small."""


class FinetuningRecipe(Section):
    """Winning the accuracy back: TRL's SFTTrainer under DeepSpeed."""

    method: Method = "full"
    """What is trained: everything; adapters on experts and attention (lora), on a base in 4 bits (qlora); the routers
    alone; or experts and routers (docs/recovery.md)."""
    lora: LoraRecipe = LoraRecipe()
    zero: int | str = 2
    """ZeRO stage (0, 1, 2, 3, 3-offload), or the path of a DeepSpeed JSON file."""
    max_length: int = Field(default=1024, ge=2)
    """Longer examples are left out, and counted."""
    examples: int | None = Field(default=None, ge=1)
    """From the task, and from every source of a mix that does not say its own number; all of them unless given."""
    select_by: Literal["last", "dev_loss", "dev_accuracy"] = "last"
    """Which checkpoint becomes the result: the last, or the best on the dev slice (measured at every save)."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after so many measurements on the dev slice in a row without a better one."""
    data: list[TrainingSourceRecipe] | None = Field(default=None, min_length=1)
    """A mix instead of the task's training split, without what overlaps with its test set; `weight` is a source's share of
    the training examples (docs/recovery.md)."""
    teacher: Literal["original"] | None = None
    """Learn from the original model's logits too, computed once and kept in the run directory."""
    distillation: DistillationRecipe = DistillationRecipe()
    trainer: dict[str, Any] = Field(default={})
    """Any field of TRL's SFTConfig (learning_rate, max_steps, optim: adamw_bnb_8bit, …)."""

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
    def _adapters_where_there_are_some(self) -> Self:
        if self.lora != LoraRecipe() and self.method not in METHODS_WITH_ADAPTERS:
            raise ValueError(f"lora says how adapters are made, and method {self.method} makes none: say method: lora, or qlora")
        return self


class SweepRecipe(Section):
    """`pollard sweep`: how far can it be pruned? Which cells is said on the command line."""

    off_task: DataRecipe | None = None
    """What the pruned models are measured on beside the task: what pruning for one task costs elsewhere."""


class Recipe(Section):
    """One whole job."""

    name: str
    """Results go to runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of what is drawn: calibration examples, the order of training, adapters, the criterion `random`."""
    model: ModelRecipe
    task: TaskRecipe
    calibration: CalibrationRecipe = CalibrationRecipe()
    pruning: PruningRecipe = PruningRecipe()
    finetuning: FinetuningRecipe = FinetuningRecipe()
    control: bool = False
    """Fine-tune the original with the same recipe, too: the honest upper bound."""
    evaluation: EvaluationRecipe = EvaluationRecipe()
    sweep: SweepRecipe = SweepRecipe()

    @model_validator(mode="after")
    def _control_has_a_server(self) -> Self:
        if self.control and self.evaluation.backend == "server" and self.evaluation.servers.control is None:
            raise ValueError("no server is named for the control: say evaluation.servers.control, or leave control out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        if isinstance(values, dict):
            # A section whose keys are all commented out reads as null: nothing is said, so its defaults hold
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


SHORTHANDS = {"model": "path", "task": "name"}
