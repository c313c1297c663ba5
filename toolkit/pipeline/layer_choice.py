"""layers.json: which decoder layers stay, and why. The stage `layers` writes it, calibration and selection read it."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedModel

from toolkit.cuts import LayersCut
from toolkit.pipeline.context import RunContext
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.selection import LayerChoice, RemovedLayer


class DevAnswers(BaseModel):
    """How many of the first dev questions are answered right, with all layers and with those that stay."""

    model_config = ConfigDict(extra="forbid")
    n: int
    before: int
    after: int


class ChosenLayers(BaseModel):
    """layers.json. Numbers of layers are those of the model that the run cuts."""

    model_config = ConfigDict(extra="forbid")
    criterion: str
    layers: int  # how many there are
    kept: list[int]
    path: str  # of their list in the model
    scores: list[float | None] | None = None
    removed: list[RemovedLayer] = []
    refused: dict[int, str] = {}
    loss: float | None = None  # on the dev slice, with all layers
    dev_examples: int | None = None
    dev_answers: DevAnswers | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, choice: LayerChoice, model: PreTrainedModel) -> Self:
        """`model`: whose layers they are; it may be without weights."""
        cut = LayersCut.of(model, choice.kept, choice.criterion)
        scores = None if choice.scores is None else list(choice.scores)
        return cls(
            criterion=choice.criterion, layers=cut.layers, kept=choice.kept, path=cut.path, scores=scores,
            removed=choice.removed, refused=choice.refused, loss=choice.loss,
        )  # fmt: skip

    @property
    def cut(self) -> LayersCut:
        """As a plan holds it; with scores where every layer has one."""
        scores = [score for score in self.scores or () if score is not None]
        complete = scores if len(scores) == self.layers else None
        return LayersCut(criterion=self.criterion, layers=self.layers, kept=self.kept, scores=complete, path=self.path)

    @property
    def loss_after(self) -> float | None:
        """On the dev slice, with the layers that stay."""
        return self.removed[-1].loss if self.removed else self.loss

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises PollardError for a file that is not there, or damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise PollardError(
                f"{path} does not say which layers stay ({error}): run the stage `layers` again (pollard run --fresh).",
                code="layers.unreadable",
            ) from None


def chosen_layers(context: RunContext) -> LayersCut | None:
    """The cut that the stage `layers` has chosen; None where this run's own plan keeps all layers. Raises PollardError where it
    does not, and the stage has not run."""
    return None if context.cuts.layers is None else ChosenLayers.load(context.directory.layers).cut
