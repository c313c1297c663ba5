"""How a recipe measures: on which questions, by what means, and what else (a part of toolkit/recipe/schema.py; see there)."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.data import Section

ModelRole = Literal["original", "pruned", "recovered"]


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
    """Tasks of lm-evaluation-harness, to see what pruning for one task costs on others (pip install 'pollard-moe[lm-eval]')."""
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
