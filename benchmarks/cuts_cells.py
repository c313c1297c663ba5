"""The cells of the study of cuts that go through the pipeline: sweeps of masked models, and fine-tuned ones."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from study import Answers, answers_of, launch

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.runtime.files import fingerprint_of, write_text
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


class PipelineCell(ABC):
    """One launch; what it measured lies in runs/<study>/<name>.json, with a fingerprint of its recipe."""

    what: tuple[str, ...]
    """What is launched, before the recipe."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def run(self, study: str) -> str:
        """The name of its run directory."""

    @abstractmethod
    def overrides(self) -> list[str]:
        """Of the recipe, the run's name apart."""

    @abstractmethod
    def measured(self, run: RunDirectory) -> SweepResult | TrainedResult:
        """What the run directory says of the cell, which has just ended."""

    def path(self, study: str) -> Path:
        return Path("runs", study, f"{self.name}.json")

    def stored(self, study: str) -> Any:
        """None until it is finished."""
        path = self.path(study)
        return json.loads(path.read_text()) if path.exists() else None

    def do(self, study: str, overrides: Sequence[str]) -> str | None:
        """Unless it is done already under exactly this recipe; where it fails, its name and its log."""
        arguments = [f"name={self.run(study)}", *self.overrides(), *overrides]
        asked, known, log = self.asked(arguments), self.stored(study), self.path(study).with_suffix(".log")
        if known and known["asked"] == asked:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        if not launch(1, [*self.what, RECIPE], arguments, log):
            return f"{self.name} ({log})"
        write_text(self.path(study), json.dumps({"asked": asked, **self.measured(RunDirectory(self.run(study)))}) + "\n")
        return None

    @abstractmethod
    def asked(self, arguments: Sequence[str]) -> str:
        """A fingerprint of what decides the result."""


@dataclass(frozen=True)
class SweepCell(PipelineCell):
    """Every width criterion at every width, masked: what is left before fine-tuning."""

    subject: str
    seed: int
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

    def asked(self, arguments: Sequence[str]) -> str:
        return fingerprint_of(dump_recipe(load_recipe(RECIPE, arguments)))

    def result(self, study: str) -> TrainedResult | None:
        found: TrainedResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> TrainedResult:
        models = {role: answers_of(run, role) for role in ("recovered", *(["control"] if self.control else []))}
        return {"seconds": run.read_manifest()["stages"]["recover"]["seconds"], "models": models}
