"""What to do: every key of a recipe, its type, default and meaning (toolkit/recipe_file.py reads the YAML).

Starts in an instant: neither torch nor trl is imported here, so names that other rooms register (criteria, scorers)
stand here as literals; a test keeps both in step.
"""

import re
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from toolkit.recipe_data import DataRecipe, Section, SourceRecipe, TaskRecipe, TrainingSourceRecipe, all_weights_or_none

Criterion = Literal[
    "random", "frequency", "gate_weight", "soft_activation", "ean", "weighted_ean", "reap", "easy_ep", "max_activation",
    "reconstruction",
]  # fmt: skip
Method = Literal["full", "lora", "qlora", "router", "experts"]
ZERO_PRESETS = (0, 1, 2, 3, "3-offload")
ModelRole = Literal["original", "pruned", "recovered"]


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
        if self.criterion == "reconstruction" and self.tokens != "all":
            raise ValueError("reconstruction compares the block's output on all tokens: say tokens: all")
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
        if self.lora != LoraRecipe() and self.method not in ("lora", "qlora"):
            raise ValueError(f"lora says how adapters are made, and method {self.method} makes none: say method: lora, or qlora")
        return self


class ServerRecipe(Section):
    """A server that answers for one of the models. `original: http://localhost:8000/v1` is short for `{url: …}`."""

    url: str
    """Where it listens, with the version: http://localhost:8000/v1."""
    model: str | None = None
    """As the server names it; unless given, the only one that it lists."""


class ServersRecipe(Section):
    """Which server answers for which model, and how they are asked. The environment's OPENAI_API_KEY is their key."""

    original: ServerRecipe | None = None
    """Of the original model."""
    pruned: ServerRecipe | None = None
    """Of the pruned one: start it when the run has made it."""
    recovered: ServerRecipe | None = None
    """Of the recovered one."""
    control: ServerRecipe | None = None
    """Of the control."""
    prompt: Literal["tokens", "text", "chat"] = "tokens"
    """What is sent: the rendered prompt's tokens, so that all models are asked the same; its text, where a server takes no
    tokens; or the conversation, for the server to render."""
    concurrency: int = Field(default=16, ge=1)
    """Questions at a time, all ranks together."""
    timeout: float = Field(default=600, gt=0, allow_inf_nan=False)
    """Seconds for one answer."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        roles = {role: {"url": values[role]} for role in ROLES if isinstance(values.get(role), str)}
        return values | roles


ROLES = ("original", "pruned", "recovered", "control")
# Of an evaluation: what the result of one model does not depend on
NOT_THE_RESULT: Any = {
    "models": True, "batch_size": True, "servers": {"concurrency", "timeout"},
    "fidelity": True, "harness": True, "harness_tasks": True,  # stages of their own
}  # fmt: skip


class EvaluationRecipe(Section):
    """Measuring on the task's test set, the same prompts for every model; greedily unless `temperature` says otherwise."""

    models: list[ModelRole] = Field(default=["original", "pruned", "recovered"])
    """Whom to ask (and the control, where there is one)."""
    examples: int | None = Field(default=None, ge=1)
    """The first n of the test set; all of it unless given."""
    split: Literal["test", "dev"] = "test"
    """`dev` while choosing anything; `test` to report."""
    batch_size: int | Literal["auto"] = "auto"
    """Questions at a time. auto: as many as GPU memory has room for, and fewer where that was too many; 32 on CPU."""
    max_new_tokens: int = Field(default=512, ge=1)
    """An answer that goes on is cut there, and counted as truncated."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0 is greedy; above it answers are drawn from the model's whole distribution."""
    samples: int = Field(default=1, ge=1)
    """Answers drawn to every question: what most of them agree on is the answer; their mean score is told, too."""
    backend: Literal["transformers", "continuous", "server"] = "transformers"
    """Who writes the answers: transformers in batches, its continuous batching (GPU), or `servers` (docs/evaluation.md)."""
    servers: ServersRecipe = ServersRecipe()
    fidelity: int | None = Field(default=None, ge=1)
    """Compare the models' next-token probabilities with the original's, over the gold answers of the first n examples (in a
    sweep: of the dev slice). Cheap, for nothing is generated: docs/fidelity.md."""
    harness: list[str] | None = Field(default=None, min_length=1)
    """Tasks of lm-evaluation-harness, to see what pruning for one task costs on others (pip install 'pollard[lm-eval]')."""
    harness_tasks: str | None = None
    """A folder with tasks of your own, in lm-eval's YAML."""

    def what_decides(self) -> dict[str, Any]:
        """For the fingerprint of one model's evaluation."""
        always = {"split": self.split, "max_new_tokens": self.max_new_tokens}
        return always | self.model_dump(exclude=NOT_THE_RESULT, exclude_defaults=True)

    @field_validator("batch_size", mode="before")
    @classmethod
    def _number_or_auto(cls, size: Any) -> Any:
        if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError("a number of questions of at least 1, or auto")
        return size

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples at temperature 0 would all be the same: say temperature: 0.7")
        if self.temperature and self.backend == "continuous":
            raise ValueError("continuous batching answers greedily here (what it draws cannot be repeated): say temperature: 0")
        missing = [role for role in self.models if getattr(self.servers, role) is None] if self.backend == "server" else []
        if missing:
            raise ValueError(
                f"no server is named for {', '.join(missing)}: say servers: {{{missing[0]}: http://localhost:8000/v1}}, "
                "or leave models out (models: […])"
            )
        if self.backend != "server" and self.servers != ServersRecipe():
            raise ValueError(f"servers are asked by the backend server, and backend is {self.backend}: say backend: server")
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
