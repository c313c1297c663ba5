"""fit.json: every shape that was considered under the limits, how large it is, how good it looks and is, and which was chosen.

    {"format": 1, "limits": {"bytes": 3900000}, "metric": "dev_loss", "original": {…}, "axes": [{"cut": "experts", …}, …],
     "shapes": [{"layers": 4, "experts": 6, "width": 152, "experts_per_token": 2, "form": "moe", "parameters": 1765504, …,
                 "predicted": 0.41, "measured": {"loss": 0.35, "score": 0.81, …}, "trial": {…}, "refused": null}, …],
     "chosen": 17, "reason": "…"}

Losses are nats per completion token of the dev slice.
"""

from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text


class FitShape(NamedTuple):
    """A stock shape of a model: counts only."""

    layers: int
    experts: int  # per block
    width: int  # channels per expert
    experts_per_token: int
    form: Literal["moe", "dense"] = "moe"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Answered(_Record):
    """What a model did on the dev slice. `right`: a digit per question, 1 for right."""

    loss: float | None  # None: not finite
    score: float | None = None
    n: int = 0
    interval: tuple[float, float] | None = None
    right: str = ""
    kl: float | None = None  # from the original, over the gold answers; where the metric is fidelity


class MeasuredShape(Answered):
    """A shape, as if it were written. `loss`: what is added to the original's, to be compared with what was predicted."""

    refit: bool = False
    bytes: int | None = None  # of the weights' files, exactly; None where the original's are not on this machine
    seconds: float = 0.0


class TrialRecovery(Answered):
    """A shape, written and fine-tuned for a part of the steps. `loss`: as it is, like the original's."""

    steps: int
    seconds: float = 0.0


class AllocationRecord(_Record):
    """What other numbers of experts in each block would give at the same size, by block name; measured on the dev slice, on whose
    loss they were also chosen, and never written.

    `difference`: of the shares of right answers, measured minus uniform, question by question, with its 95 % interval and
    McNemar's p; None without questions. `measurements`: losses that the search measured.
    """

    keep: int
    experts: dict[str, int]
    experts_per_token: dict[str, int]
    uniform: Answered
    measured: Answered
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    measurements: int
    seconds: float = 0.0
    not_written: str


class AxisPoint(_Record):
    """One kind of cut alone: so much stays, and so much greater is the loss than the original's (None: not finite)."""

    value: int
    delta: float | None


class Axis(_Record):
    """`original`: the value that cuts nothing."""

    cut: Literal["experts", "width", "layers", "experts_per_token"]
    original: int
    points: list[AxisPoint]


class ShapeRecord(_Record):
    """One shape. `bytes`: of its weights on disk, in the dtype that is counted; of shapes that were measured to the last byte."""

    layers: int
    experts: int
    width: int
    experts_per_token: int
    form: Literal["moe", "dense"] = "moe"
    parameters: int
    active_parameters: int
    bytes: int
    single_cut: Literal["experts", "width", "layers", "dense"] | None = None  # the best one that cuts nothing else
    predicted: float | None = None  # the sum of its axes' deltas
    measured: MeasuredShape | None = None
    trial: TrialRecovery | None = None
    refused: str | None = None

    @property
    def shape(self) -> FitShape:
        return FitShape(self.layers, self.experts, self.width, self.experts_per_token, self.form)


class OriginalSize(_Record):
    """The model that is cut."""

    layers: int
    experts: int
    width: int
    experts_per_token: int
    parameters: int
    active_parameters: int
    bytes: int
    measured: Answered | None = None

    @property
    def shape(self) -> FitShape:
        return FitShape(self.layers, self.experts, self.width, self.experts_per_token)


class FitResult(_Record):
    """fit.json."""

    format: Literal[1] = 1
    fingerprint: str
    request: str = ""  # identifies the keys of the recipe that it answers
    limits: dict[str, int]
    dtype: str
    metric: Literal["dev_loss", "accuracy", "fidelity"]
    original: OriginalSize
    kept_layers: dict[int, list[int]] = {}  # by how many stay, which: nested, the original's numbers
    axes: list[Axis] = []
    shapes: list[ShapeRecord] = []
    chosen: int | None = None  # its place in `shapes`
    reason: str = ""
    allocation: AllocationRecord | None = None  # of the chosen shape, where it is asked for
    seconds: dict[str, float] = {}  # by stage; not in the file: the manifest has them

    @property
    def choice(self) -> ShapeRecord:
        """Raises PollardError where none is chosen yet."""
        if self.chosen is None:
            raise PollardError("fit.json has no chosen shape: the stage fit/choose has not run.", code="fit.not-chosen")
        return self.shapes[self.chosen]

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises PollardError for a file that is not there, or damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise PollardError(
                f"{path} is no result of a fit ({error}): run the fit again (pollard fit RECIPE --fresh).", code="fit.unreadable"
            ) from None
