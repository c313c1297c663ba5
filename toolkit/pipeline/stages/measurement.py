"""What the stages share that measure one model of the run: which of them a recipe asks for, and what they are made from."""

import json
from dataclasses import replace
from typing import ClassVar

from toolkit.estimate import Machine, ModelSize
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import BatchSection, Change, Relief, smaller_models
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import is_main
from toolkit.runtime.files import JsonObject, write_text


class Measurement(Stage):
    """Its output lies in evaluation/."""

    role: Role
    batch_section: ClassVar[BatchSection | None] = "evaluation"
    suffix: ClassVar[str]
    """Of its output, behind the role: ".fidelity.json"."""

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        assert role is not None
        super().__init__(context, role)
        self.sections = (*DECIDING[role], "evaluation")
        self.needs = (MADE_BY[role],) if role in MADE_BY else ()
        self.output = f"evaluation/{role}{self.suffix}"

    def is_asked_for(self) -> bool:
        recipe = self.context.recipe
        return recipe.control if self.role is Role.CONTROL else self.role in recipe.evaluation.models

    def relief(self, machine: Machine) -> Relief:
        pruned = self.role in (Role.PRUNED, Role.REFITTED, Role.RECOVERED)
        smaller = smaller_models(self.context.asked, self.context.budget.keep) if pruned else ()
        return replace(super().relief(machine), omission=self.omission(), smaller_models=smaller)

    def omission(self) -> Change | None:
        """To do without the measurement; None where the recipe cannot."""
        return None

    def measured(self, sizes: RecipeOnMachine) -> ModelSize:
        """The size of the model."""
        return sizes.original() if self.role in (Role.ORIGINAL, Role.CONTROL) else sizes.pruned()

    def write(self, figures: JsonObject) -> None:
        """Writes evaluation/<role><suffix>, on rank 0."""
        if is_main():
            path = self.context.directory.evaluation / f"{self.role}{self.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(figures, indent=1) + "\n")
