"""Which checkpoint is trained into which: the pruned model into `recovered/`, or the original, alike, into `control/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.runtime.signed_folders import provenance

TrainedRole = Literal["recovered", "control"]


@dataclass(frozen=True)
class Training:
    """Where a training starts, and where it leaves what."""

    source: str  # a checkpoint's folder or hub id
    revision: str | None
    target: Path
    adapter: Path
    checkpoints: Path
    log: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What the trained checkpoint says of itself."""
        return provenance("fine-tuned checkpoint", self.source, self.revision)


def training_of(recipe: Recipe, run: RunDirectory, role: TrainedRole) -> Training:
    if role == "control":
        model, checkpoints = recipe.model, run.checkpoints / role
        return Training(model.path, model.revision, run.control, run.control_adapter, checkpoints, run.control_log)
    return Training(str(run.pruned), None, run.recovered, run.adapter, run.checkpoints / role, run.training_log)
