"""What a report tells, typed: the facts of one run, which the page, the model card and the terminal render.

    {"format": 1, "name": "playground", "models": {"original": {"score": 0.998, "n": 500, …}, "pruned": …}, "pairs": […], …}

`RunFacts` is report.json: `RunFacts.model_validate_json` reads what `as_json` writes, and the order of the fields is the order of
the keys. None stands for what the run has not done. `toolkit/pipeline/run_facts.py` reads a run directory into it; nothing in
this package knows where a run keeps its files. Shares, scores and intervals are fractions in [0, 1].
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from toolkit.recipe.roles import Role
from toolkit.report.class_results import ClassFacts
from toolkit.report.cut_facts import CriteriaAgreement, CutFacts
from toolkit.report.export_facts import ExportFacts
from toolkit.report.first_task import FirstTaskFacts
from toolkit.report.fit_facts import FitFacts
from toolkit.report.making import MakingFacts
from toolkit.report.measurements import Facts, Fidelity, HarnessRow, Interval, Number, SpeedTable, SweepTable
from toolkit.report.noninferiority import NonInferiority
from toolkit.report.off_task_facts import OffTaskLoss
from toolkit.report.paired import PairedComparison
from toolkit.report.refit_facts import RefitFacts
from toolkit.report.written_data import NewQuestionsFacts, StudentFacts

LoggedLoss = tuple[Number, Number | None]  # step, nats per token; None: it was not finite


RoutingEntropy = tuple[Number, Number, Number]  # step, bits: the mean over blocks and the least of any


def _where_known() -> Any:
    """A number that earlier reports do not have; where it is None there is no key."""
    return Field(default=None, exclude_if=lambda number: number is None)


class ModelResult(Facts):
    """One model's evaluation (evaluation/<role>.json). Sizes are in bytes and in parameters, speed is generated tokens per second
    of all ranks together."""

    score: Number
    correct: int
    n: int
    interval: Interval  # 95 %, Wilson
    chance: Number | None = _where_known()  # the score of guessing, where there are choices
    flexible_score: Number | None = None
    flexible_correct: int | None = None
    split: str | None = None
    truncated: int | None = None
    empty: int | None = None
    unfinished_reasoning: int | None = None
    given_up: int | None = None
    credit: Number | None = None
    credit_interval: Interval | None = _where_known()
    likelihood_score: Number | None = None
    likelihood_correct: int | None = None
    generated_tokens: int | None = None
    seconds: Number | None = None
    logged: int | None = _where_known()  # answers that `seconds` are not of
    tokens_per_second: Number | None = None
    tokens_per_answer: Number | None = _where_known()
    truncated_share: Number | None = _where_known()
    seconds_per_right: Number | None = _where_known()  # seconds for all answers, per right one
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    active_parameters: Number | None = None  # an average, where experts are skipped
    checkpoint_bytes: int | None = None
    max_new_tokens: int | None = None
    batch_size: int | str | None = None
    ranks: int | None = None
    device: str | None = None
    dtype: str | None = None
    skip_rate: Number | None = None
    context_length: int | None = None
    prompts_beyond_context: int | None = None
    prompts_without_room: int | None = None
    experts_skipped: Number | None = None
    backend: str | None = None
    temperature: Number | None = None
    samples: int | None = None
    mean_score: Number | None = None
    task: str | None = Field(default=None, exclude=True)  # report.json names it once, for all models


class RolePair(PairedComparison[Role]):
    """Two models of one run."""


class ChangedAnswer(Facts):
    """A question that one of the two models answers rightly; texts are shortened."""

    index: int
    question: str
    gold: str
    before: str
    after: str


class ChangedAnswers(Facts):
    """How many answers changed in one direction, and the first of them."""

    count: int
    examples: list[ChangedAnswer]


class AnswerChanges(Facts):
    """What the result lost and won against the original."""

    model: Role
    lost: ChangedAnswers
    won: ChangedAnswers


class Provenance(Facts):
    """Hub ids of the base model and of the data sets (local ones have none), the architecture, and what the original's card says
    of its licence and languages. `local_paths`: what the recipe names that lies on the machine of the run alone."""

    base_model: str | None
    datasets: list[str]
    family: str | None
    card: dict[str, JsonValue]
    local_paths: list[str] = Field(default=[], exclude_if=lambda paths: not paths)


class DenseFacts(Facts):
    """The dense form: squared errors of the blocks' outputs on the calibration tokens, relative to the original's, on average
    over blocks; with the coefficients that were written, and with mean gate weights."""

    error: Number
    mean_gate_error: Number


class PruningFacts(Facts):
    """How the plan was chosen: `keep` of `experts` in each of `blocks`; with a schedule, over all rounds. A step is a number of
    experts, or text where it says more."""

    criterion: str
    mode: str | None
    tokens: str
    seed: int
    keep: int
    experts_per_token: int
    experts: int
    blocks: int
    schedule: list[int | str] | None
    dense: DenseFacts | None = None
    onto: str | None = Field(default=None, exclude_if=lambda onto: onto is None)
    """The checkpoint that has grown."""
    held: int | None = Field(default=None, exclude_if=lambda held: held is None)
    """How many of `keep` that one has."""

    @model_serializer(mode="wrap")
    def _without_the_usual_form(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return values if self.dense else {key: value for key, value in values.items() if key != "dense"}


class CalibrationFacts(Facts):
    """How much the calibration read; `tokens` by kind (prompt, completion)."""

    examples: int | None
    left_out: int | None
    beyond_context: int | None
    tokens: dict[Literal["prompt", "completion"], int] | None


class BlockFacts(Facts):
    """One MoE block: its use in calibration and what the plan keeps. `share` has per kind of tokens each expert's share of the
    routing choices [E], None where there was no such token."""

    experts: int
    kept: list[int] | None = None
    share: dict[str, list[Number] | None] | None = None
    kept_share: Number | None = None
    kept_unobserved: int | None = None
    unobserved: list[int] | None = None
    entropy_bits: Number | None = None


class TrainingFacts(Facts):
    """A finished fine-tuning and its logged losses. `selected_step`: the checkpoint that was kept."""

    steps: int | None
    examples: int | None
    left_out: int | None
    repeating: int | None  # training examples that are questions of the test set or the dev slice
    beyond_context: int | None
    selected_step: int | None
    loss: list[LoggedLoss]
    dev_loss: list[LoggedLoss]
    routing_entropy: list[RoutingEntropy] = Field(default=[], exclude_if=lambda logged: not logged)
    questions: NewQuestionsFacts | None = Field(default=None, exclude_if=lambda questions: questions is None)
    student: list[StudentFacts] = Field(default=[], exclude_if=lambda student: not student)  # by training, the last one's last

    @property
    def last_step(self) -> int | float:
        """The last step of which anything was logged; 0 where nothing was."""
        return max((point[0] for points in (self.loss, self.dev_loss, self.routing_entropy) for point in points), default=0)


class StaleFiles(Facts):
    """Files of the run that its recipe does not ask for any more, and why."""

    parts: list[str]
    why: str


class RunFacts(Facts):
    """Everything that is known of a run. `stages` are the manifest's entries of the stages that are done, as they stand there."""

    format: Literal[1]
    name: str
    model: str | None
    task: str | None
    origin: Provenance
    making: MakingFacts | None = Field(default=None, exclude_if=lambda making: making is None)
    seed: int | None
    fit: FitFacts | None = Field(default=None, exclude_if=lambda fit: fit is None)  # where the shape was searched
    pruning: PruningFacts | None
    cuts: CutFacts | None = Field(default=None, exclude_if=lambda cuts: cuts is None)  # where more than experts was cut
    calibration: CalibrationFacts | None
    refit: RefitFacts | None = Field(default=None, exclude_if=lambda refit: refit is None)  # where there was one
    first_task: FirstTaskFacts | None = Field(default=None, exclude_if=lambda first: first is None)  # of a model that has grown
    models: dict[Role, ModelResult | None]
    ratios: dict[Role, dict[str, float]]
    pairs: list[RolePair]
    classes: ClassFacts | None = Field(default=None, exclude_if=lambda classes: classes is None)  # where answers are labels
    noninferiority: NonInferiority | None = Field(default=None, exclude_if=lambda facts: facts is None)  # with a margin
    changed: AnswerChanges | None
    blocks: dict[str, BlockFacts]
    criteria: CriteriaAgreement | None
    training: TrainingFacts | None
    control_training: TrainingFacts | None
    sweep: SweepTable | None
    fidelity: dict[Role, Fidelity]
    off_task: dict[Role, OffTaskLoss] = Field(default={}, exclude_if=lambda off_task: not off_task)  # where it was measured
    speed: SpeedTable | None
    exports: list[ExportFacts] = Field(default=[], exclude_if=lambda exports: not exports)  # those of the current models
    harness: list[HarnessRow]
    stale: list[StaleFiles]
    stages: dict[str, dict[str, Any]]
    versions: dict[str, str] | None
    git_commit: str | None
    recipe: dict[str, JsonValue] | None
    recipe_path: str
    headline: str = ""
    summary: str = ""
    comparisons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def evaluated(self) -> dict[Role, ModelResult]:
        """The models that have a result."""
        return {role: result for role, result in self.models.items() if result}

    @property
    def result(self) -> Role:
        """The model that the run ends with: the recovered one, where there is a recovery, else the refitted one."""
        before = Role.REFITTED if self.refit else Role.PRUNED
        return Role.RECOVERED if self.training else before

    @property
    def evaluated_result(self) -> Role | None:
        """The last model of the run that was evaluated: recovered, else refitted, else pruned."""
        return next((role for role in (Role.RECOVERED, Role.REFITTED, Role.PRUNED) if self.models.get(role)), None)

    def pair_of(self, first: Role, second: Role) -> RolePair | None:
        """The comparison of two models; None where they did not answer the same questions."""
        return next((pair for pair in self.pairs if (pair.first, pair.second) == (first, second)), None)


def look_up(facts: RunFacts, path: list[str | int]) -> Any:
    """What stands at `path` of report.json, typed: ["models", "recovered", "score"]."""
    value: Any = facts
    for key in path:
        value = getattr(value, str(key)) if isinstance(value, BaseModel) else value[key]
    return value
