"""The cells of the study of cuts that go through the pipeline: sweeps of masked models, and fine-tuned ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from study import Answers, PipelineCell, answers_of

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import dump_recipe
from toolkit.runtime.files import fingerprint_of
from toolkit.selection import WIDTH_CRITERIA

RECIPE = "recipes/study/cuts.yaml"
SUBJECTS = ("arithmetic", "sorting")
WIDTHS = (192, 128, 64)  # of 256


class Masked(Answers):
    """`loss` in nats per token, over the `tokens` of the gold answers; sizes are those of what pruning would write."""

    criterion: str | None
    width: int | None
    loss: float
    tokens: int
    parameters: int
    active_parameters: int


class SweepResult(TypedDict):
    """The first of `models` is the original."""

    models: list[Masked]


class TrainedResult(TypedDict):
    """`models` by role: recovered and, where it is trained, control."""

    seconds: float
    models: dict[str, Answers]


@dataclass(frozen=True)
class SweepCell(PipelineCell):
    """Every width criterion at every width, masked: what is left before fine-tuning."""

    subject: str
    seed: int
    recipe = RECIPE
    what = ("--module", "toolkit.cli", "sweep")

    @property
    def name(self) -> str:
        return f"masked-{self.subject}-seed{self.seed}"

    def run(self, study: str) -> str:
        return f"{study}-{self.name}"

    def overrides(self) -> list[str]:
        return [
            f"task=playground/{self.subject}", f"seed={self.seed}", f"pruning.width={','.join(map(str, WIDTHS))}",
            f"pruning.width_criterion={','.join(WIDTH_CRITERIA)}",
        ]  # fmt: skip

    def asked(self, arguments: Sequence[str]) -> str:
        grid = load_grid(RECIPE, arguments)
        return fingerprint_of([dump_recipe(recipe) for recipe in (grid.recipe, *(cell.recipe for cell in grid.cells))])

    def result(self, study: str) -> SweepResult | None:
        found: SweepResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> SweepResult:
        models: list[Masked] = []
        for row in json.loads((run.sweep / "table.json").read_text())["rows"]:
            task = json.loads((run.sweep / row["file"]).read_text())["task"]
            models.append(
                {
                    "criterion": row.get("width_criterion"), "width": row["width"],
                    "loss": task["loss"], "tokens": task["loss_tokens"],
                    "parameters": row["parameters"], "active_parameters": row["active_parameters"],
                    "score": task["score"], "n": task["n"], "interval": task["interval"], "right": task["right"],
                }
            )  # fmt: skip
        return {"models": models}


@dataclass(frozen=True)
class TrainedCell(PipelineCell):
    """Narrowed and fine-tuned; with `control` the original fine-tuned, too."""

    subject: str
    seed: int
    criterion: str
    width: int
    control: bool = False
    recipe = RECIPE
    what = ("toolkit/train.py",)

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.criterion}-width{self.width}-seed{self.seed}"

    def run(self, study: str) -> str:
        """Criteria share it, one after the other, so that calibration is done once, and once more with gradients."""
        return f"{study}-{self.subject}-width{self.width}-seed{self.seed}"

    def overrides(self) -> list[str]:
        return [
            f"task=playground/{self.subject}", f"seed={self.seed}", f"pruning.width={self.width}",
            f"pruning.width_criterion={self.criterion}", *(["control=true"] if self.control else []),
        ]  # fmt: skip

    def result(self, study: str) -> TrainedResult | None:
        found: TrainedResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> TrainedResult:
        models = {role: answers_of(run, role) for role in ("recovered", *(["control"] if self.control else []))}
        return {"seconds": run.read_manifest()["stages"]["recover"]["seconds"], "models": models}
