"""Files of measurements that report.json repeats: fidelity, sweep/table.json, speed.json, the harness; and the base of all facts.

    {"format": 2, "task": "playground/arithmetic", "split": "dev", "n": 500, "experts": 8, "rows": [{"label": "original", …}, …]}

Scores, shares and intervals are fractions in [0, 1]; losses and KL are nats per token.
"""

from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from toolkit.recipe.roles import Role

Number = int | float  # a number stays what its file says: 1 does not become 1.0
Interval = tuple[Number, Number]  # low, high
Timing = tuple[Number, Number, Number]  # median, lowest, highest


class Facts(BaseModel):
    """Base of all facts: immutable; keys that no report reads are dropped."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return self.model_dump(mode="json")


class FileFacts(Facts):
    """Base of what report.json repeats from a file: written as it was read, every key in its place."""

    model_config = ConfigDict(extra="allow")
    _keys: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _remember_keys(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        made = validate(values)
        if isinstance(values, dict):
            made._keys = list(values)
        return made

    @model_serializer(mode="wrap")
    def _as_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = dump(self)
        return {key: values[key] for key in self._keys}


class Fidelity(FileFacts):
    """Likeness to the original per token: KL in nats and acceptance, each with its standard error (None: a single example)."""

    kl: Number | None
    kl_error: Number | None
    acceptance: Number | None
    acceptance_error: Number | None
    tokens: int
    examples: int | None = None
    split: str | None = None
    left_out: int | None = None


class OffTaskResult(FileFacts):
    """How good a cell is on other data; a plain text has a loss and no score."""

    name: str
    loss: Number | None
    loss_tokens: int | None = None
    left_out: int | None = None
    score: Number | None = None
    correct: int | None = None
    n: int | None = None
    interval: Interval | None = None


class TaskResult(OffTaskResult):
    """How good a cell is on the dev slice of its task."""

    score: Number
    correct: int
    n: int
    interval: Interval


class MeasuredAllocation(FileFacts):
    """Numbers of experts of a cell's blocks, in their order, searched on the loss; `difference`, of the share of right answers,
    to the uniform cell of the same size, with its 95 % interval and McNemar's p. `measurements`: losses of the search."""

    experts: list[int]
    active: list[int]
    measurements: int
    uniform_loss: Number | None
    difference: Number
    interval: Interval
    p: Number


class SweepRow(FileFacts):
    """A cell of a sweep, or the original: the first row, without a criterion."""

    label: str
    keep: int
    width: int | None = None  # channels per expert; None: all, as for layers
    layers: int | None = None
    parameters: int | None = None  # of the pruned model; None in tables where experts alone are cut, as for active ones
    active_parameters: int | None = None
    bytes: int | None = None  # of its weights in the checkpoint's dtype; only in tables where some cells are compressed
    compression: str | None = None
    allocation: MeasuredAllocation | None = None
    not_written: str | None = None  # why there is no checkpoint like it; None: a recipe can have it
    criterion: str | None = None
    width_criterion: str | None = None
    layer_criterion: str | None = None
    schedule: list[int] | None = None
    experts_per_token: int | None = None
    tokens: str | None = None
    mode: str | None = None
    seed: int | None = None
    kept_unobserved: int | None = None
    task: TaskResult
    off_task: OffTaskResult | None = None
    fidelity: Fidelity | None = None
    file: str | None = None

    @property
    def drawn(self) -> bool:
        """Whether a criterion draws, so that the seed counts."""
        return "random" in self.label.partition(",")[0].split(" + ")

    @property
    def amount(self) -> int:
        """What is swept: bytes or parameters, where these are known, else experts."""
        if self.bytes is not None:
            return self.bytes
        return self.keep if self.parameters is None else self.parameters

    @property
    def shape(self) -> str:
        """ "keep 4"; "4 experts, 128 channels, 3 layers", without those of which all stay."""
        if self.parameters is None:
            return f"keep {self.keep}{' on average' if self.allocation else ''}"
        parts = [f"{self.keep} experts{' on average' if self.allocation else ''}"]
        parts += [f"{self.width:,} channels"] if self.width else []
        parts += [f"{self.layers} layer{'s' * (self.layers > 1)}"] if self.layers else []
        return ", ".join([*parts, *([self.compression] if self.compression else [])])


class SweepTable(FileFacts):
    """sweep/table.json; `holding`: per label the fewest experts with which accuracy holds; where widths or layers are swept, too,
    the fewest parameters; with compressed cells, the fewest bytes."""

    format: int
    task: str
    split: str
    n: int
    off_task: str | None
    experts: int
    rows: list[SweepRow]
    holding: dict[str, int | None]
    recommendation: str

    @property
    def by_size(self) -> bool:
        """Whether more than experts is swept: cells are compared by their parameters."""
        return self.rows[0].parameters is not None

    @property
    def by_bytes(self) -> bool:
        """Whether some cells are compressed: all are compared by their bytes."""
        return self.rows[0].bytes is not None


class SpeedRatios(FileFacts):
    """Of one batch size, to the first model."""

    prefill: Timing
    decode: Timing
    first_token: Timing | None = None
    peak_memory_bytes: Number


class BatchSpeed(FileFacts):
    """Prefill and decode in tokens per second, the first token in seconds; None for a batch that does not fit."""

    batch_size: int | None = None
    fits: bool
    prefill: Timing | None = None
    decode: Timing | None = None
    first_token: Timing | None = None
    peak_memory_bytes: int | None = None
    ratios: SpeedRatios | None = None


class ModelSpeed(FileFacts):
    """One model; `ratios` of its sizes are to the first model, `batches` follow the table's `batch_sizes`."""

    name: str
    parameters: int | None
    active_parameters: int | None
    checkpoint_bytes: int | None
    path: str | None = None
    random: bool
    ratios: dict[str, Number | None]
    batches: list[BatchSpeed]


class SpeedTable(FileFacts):
    """What `pollard benchmark` measured (speed.json). `of`: the fingerprints of the run's models, in a run directory."""

    format: int
    device: str
    threads: int
    batch_sizes: list[int]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    together: bool
    models: list[ModelSpeed]
    of: dict[str, str] | None = None


class HarnessScore(Facts):
    """A metric of lm-evaluation-harness with its standard error."""

    value: Number
    error: Number | None


class HarnessRow(Facts):
    """One metric of one task, for every model that was asked."""

    task: str
    metric: str
    n: int | None
    # lm-eval's: multiple_choice, generate_until, …
    output_type: str | None = Field(default=None, exclude_if=lambda kind: kind is None)
    models: dict[Role, HarnessScore]

    @property
    def label(self) -> str:
        """The task, and whether the right answer is only to be found among choices."""
        return f"{self.task} (choices)" if self.is_multiple_choice else self.task

    @property
    def is_multiple_choice(self) -> bool:
        return self.output_type == "multiple_choice"
