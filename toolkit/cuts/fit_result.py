"""fit.json: every shape that was considered under the limits, how large it is, how good it looks and is, and which was chosen.

    {"format": 1, "limits": {"bytes": 3900000}, "metric": "dev_loss", "original": {…}, "axes": [{"cut": "experts", …}, …],
     "shapes": [{"layers": 4, "experts": 6, "width": 152, "experts_per_token": 2, "form": "moe", "parameters": 1765504, …,
                 "predicted": 0.41, "measured": {"loss": 0.35, "score": 0.81, …}, "trial": {…}, "refused": null}, …],
     "chosen": 17, "reason": "…"}

Losses are nats per completion token of the dev slice.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.runtime.display import Displayed, Overview
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import amount, percent, precise_size, signed_loss


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

    def in_words(self) -> str:
        active = "dense" if self.form == "dense" else f"{self.experts_per_token} active"
        return f"{self.layers} layers, {self.experts} experts of width {self.width:,}, {active}"


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


class FitResult(Displayed, _Record):
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

    @property
    def frontier(self) -> list[ShapeRecord]:
        """The measured shapes that none of the same size on disk or a smaller one beats by its loss, from the smallest on."""
        shapes = [shape for shape in self.shapes if shape.measured and shape.measured.loss is not None and not shape.refused]
        losses = [shape.measured.loss for shape in shapes if shape.measured and shape.measured.loss is not None]
        return [shapes[place] for place in unbeaten([shape.bytes for shape in shapes], losses)]

    def overview(self) -> Overview:
        """The shapes of the frontier and the chosen one, and what they lose."""
        chosen = None if self.chosen is None else self.choice
        shapes = self.frontier
        if chosen is not None and not any(shape is chosen for shape in shapes):
            shapes.append(chosen)
        measured = sum(shape.measured is not None for shape in self.shapes)
        facts = [f"{name} ≤ {limit:,}" for name, limit in self.limits.items()]
        facts += [f"{len(self.shapes)} shapes", f"{measured} measured", chosen.in_words() if chosen else "none chosen yet"]
        rows = [
            (
                shape.in_words(), precise_size(shape.bytes), amount(shape.active_parameters),
                signed_loss(shape.measured.loss if shape.measured else None),
                percent(shape.measured.score if shape.measured else None), "chosen" * (shape is chosen),
            )
            for shape in shapes
        ]  # fmt: skip
        columns = ("shape", "size", "active parameters", "loss added", "score", "")
        return Overview(facts, columns, rows, "shapes that no smaller one beats" * bool(rows))

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


def unbeaten(sizes: Sequence[int | float], losses: Sequence[float]) -> list[int]:
    """Places of those that none of the same size or a smaller one has a lower loss than, from the smallest on."""
    best, places = math.inf, []
    for place in sorted(range(len(sizes)), key=lambda place: (sizes[place], losses[place])):
        if losses[place] < best:
            best = losses[place]
            places.append(place)
    return places
