"""The keys of a recipe for the evaluation (a part of toolkit/recipe/schema.py)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, field_validator, model_validator

from toolkit.recipe.data import Section, optional
from toolkit.recipe.off_task import OffTaskData, OffTaskRecipe
from toolkit.recipe.roles import Role

ModelRole = Literal["original", "pruned", "refitted", "recovered"]


class ServerRecipe(Section):
    """A server that runs one of the models. `original: http://localhost:8000/v1` is short for `{url: …}`."""

    url: str
    """Base URL with the API version: http://localhost:8000/v1."""
    model: str | None = None
    """The model's name on the server. Default: the only one that the server lists."""


class ServersRecipe(Section):
    """The servers that run the models, and how requests are sent. The environment variable OPENAI_API_KEY is the key."""

    original: ServerRecipe | None = None
    """Server of the original model."""
    pruned: ServerRecipe | None = None
    """Server of the pruned model: start it when the run has written that model."""
    refitted: ServerRecipe | None = Field(default=None, exclude_if=lambda server: server is None)
    """Server of the refitted model."""
    recovered: ServerRecipe | None = None
    """Server of the recovered model."""
    control: ServerRecipe | None = None
    """Server of the control."""
    prompt: Literal["tokens", "text", "chat"] = "tokens"
    """What is sent: tokens (of the rendered prompt, so that all models get the same input), text (for servers that accept no
    tokens), or chat (the messages, which the server renders)."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight, over all ranks."""
    timeout: int | float = Field(default=600, gt=0, allow_inf_nan=False)
    """Time limit for one answer, in seconds."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        roles = {role: {"url": values[role]} for role in ROLES if isinstance(values.get(role), str)}
        return values | roles


ROLES = (Role.ORIGINAL, Role.PRUNED, Role.REFITTED, Role.RECOVERED, Role.CONTROL)  # that have a checkpoint of their own
# Keys that the result of one model does not depend on, for `fingerprint_values`
NOT_IN_FINGERPRINT: Any = {
    "models": True, "batch_size": True, "servers": {"concurrency", "timeout"},
    "fidelity": True, "off_task": True, "harness": True, "harness_tasks": True,  # stages of their own
    "margin": True,  # of the report
}  # fmt: skip


class EvaluationRecipe(Section):
    """Evaluation on the task's test set, with the same prompts for every model. Decoding is greedy if `temperature` is 0."""

    models: list[ModelRole] = Field(default=["original", "pruned", "recovered"])
    """Models to evaluate. The refitted one is among them by default where `pruning.refit` is set; the control is added when
    `control: true`."""
    examples: int | None = Field(default=None, ge=1)
    """Number of test examples, from the beginning of the test set. Default: all."""
    split: Literal["test", "dev"] = "test"
    """Use `dev` while you choose anything, `test` for the result you report."""
    margin: Annotated[float, Field(gt=0, lt=100, strict=True, allow_inf_nan=False)] | None = optional()
    """The largest loss against the original that you would accept, in percentage points: 2. The report says whether the questions
    show that the result is no worse than that (non-inferiority, docs/report.md). Decide on it before you look."""
    batch_size: int | Literal["auto"] = "auto"
    """Prompts per batch. auto: as many as fit into GPU memory, fewer after an out-of-memory error; 32 on CPU."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longer answers are cut off and counted as truncated."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0: greedy decoding. Above 0: answers are sampled from the model's full distribution."""
    samples: int = Field(default=1, ge=1)
    """Answers sampled per question. The majority answer is scored; the mean score of the samples is reported as well."""
    backend: Literal["transformers", "continuous", "server"] = "transformers"
    """What generates the answers: transformers in batches, its continuous batching (GPU), or `servers` (docs/evaluation.md)."""
    servers: ServersRecipe = ServersRecipe()
    fidelity: int | None = Field(default=None, ge=1)
    """Compare the models' next-token probabilities with the original's on the reference answers of the first n examples (in a
    sweep: of the dev slice). Cheap, since nothing is generated (docs/fidelity.md)."""
    off_task: OffTaskData = Field(default=OffTaskRecipe(), exclude_if=lambda data: data == OffTaskRecipe())
    """What the models lost elsewhere: their loss on other data, and how like the original's their next tokens are (nothing is
    generated). true: some 60 short texts that come with Pollard; false: not measured; or a task (its dev examples) or a text, of
    which the first 64 examples count unless `examples` says otherwise (docs/evaluation.md)."""
    harness: list[str] | None = Field(default=None, min_length=1)
    """Tasks of lm-evaluation-harness, to measure what pruning costs on other tasks (pip install 'pollard-moe[lm-eval]')."""
    harness_tasks: str | None = None
    """A folder with your own tasks in lm-eval's YAML format."""

    @property
    def measured_off_task(self) -> OffTaskRecipe | None:
        """Where the models' loss beside the task is measured; None where it is not. Servers return no probabilities: with them
        models are loaded for it only where the recipe names data."""
        loaded = self.backend != "server" or self.off_task != OffTaskRecipe()
        return self.off_task if loaded else None

    @property
    def without_server(self) -> str:
        """What is wrong where a server is to run a model and none is named; else empty."""
        missing = [role for role in self.models if getattr(self.servers, role) is None] if self.backend == "server" else []
        if not missing:
            return ""
        return (
            f"no server is named for {', '.join(missing)}: say servers: {{{missing[0]}: http://localhost:8000/v1}}, "
            "or leave models out (models: […])"
        )

    def fingerprint_values(self) -> dict[str, Any]:
        """The values that decide the result of one model, for its evaluation's fingerprint."""
        always = {"split": self.split, "max_new_tokens": self.max_new_tokens}
        return always | self.model_dump(exclude=NOT_IN_FINGERPRINT, exclude_defaults=True)

    @field_serializer("off_task", mode="wrap")
    def _off_is_false(self, data: OffTaskRecipe | None, dump: SerializerFunctionWrapHandler) -> Any:
        return False if data is None else dump(data)

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
        if self.without_server:
            raise ValueError(self.without_server)
        if self.backend != "server" and self.servers != ServersRecipe():
            raise ValueError(f"servers are asked by the backend server, and backend is {self.backend}: say backend: server")
        return self
